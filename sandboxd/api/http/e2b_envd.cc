// What the routes inside a sandbox have in common: which sandbox, who may, and is it there.
#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/ids.h"
#include "sandboxd/api/http/e2b.h"

namespace reprise::sandboxd::http {
namespace {

constexpr char kDefaultUser[] = "user";

}  // namespace

std::string SandboxIdOf(const Request& request) {
  if (const std::string_view id = request.header("e2b-sandbox-id"); !id.empty())
    return std::string(id);
  const std::string_view host = request.header("host");
  const size_t dash = host.find('-'), dot = host.find('.');
  if (dash == std::string_view::npos || dash == 0 || dot == std::string_view::npos || dot < dash ||
      host.find_first_not_of("0123456789") != dash)
    return std::string(Access::SandboxOf(request.header("x-access-token")));
  return std::string(host.substr(dash + 1, dot - dash - 1));
}

Guard EnvdGuard(const Surface& surface) {
  return [access = surface.access](const Request& request) -> std::optional<Response> {
    const std::string id = SandboxIdOf(request);
    if (!base::CheckId(id, "sandbox id", /*allow_slash=*/true).ok())
      return ErrorResponse(400,
                           "the header E2b-Sandbox-Id, or the X-Access-Token, must name a sandbox");
    if (access->MayUse(request, id)) return std::nullopt;
    return ErrorResponse(401, "X-Access-Token must be the envdAccessToken of the sandbox");
  };
}

Response SandboxGone(std::string_view sandbox_id) {
  const nlohmann::json body = {
      {"sandboxId", sandbox_id}, {"message", "The sandbox was not found"}, {"code", 502}};
  return JsonResponse(502, body.dump());
}

std::optional<Response> CheckUsable(const Surface& surface, const std::string& id) {
  const absl::StatusOr<sandbox::Sandbox> found = surface.sandboxes->Get(id);
  if (absl::IsNotFound(found.status())) return SandboxGone(id);
  if (!found.ok()) return ErrorResponse(found.status());
  if (found->state() == sandbox::SANDBOX_STATE_STOPPED ||
      found->state() == sandbox::SANDBOX_STATE_LOST)
    return SandboxGone(id);
  return std::nullopt;
}

std::string UserOf(const Request& request) {
  const std::optional<BasicCredentials> basic = BasicOf(request);
  std::string user;
  if (basic.has_value() && basic->password.empty()) user = basic->user;
  if (const std::string* named = request.query_param("username"); named != nullptr) user = *named;
  return user == kDefaultUser ? "" : user;
}

}  // namespace reprise::sandboxd::http
