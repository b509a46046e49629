#include "sandboxd/api/http/e2b_box.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/status_macros.h"

namespace reprise::sandboxd::http {
namespace {

using Json = nlohmann::json;

constexpr size_t kBodyMax = 1u << 20;
constexpr size_t kPageDefault = 100, kPageMax = 1000;
constexpr char kClientId[] = "reprise";

}  // namespace

Response Answer(int status, const Json& json) {
  return JsonResponse(status, json.dump(-1, ' ', false, Json::error_handler_t::replace));
}

Response EmptyAnswer(int status) {
  Response response;
  response.status = status;
  return response;
}

absl::StatusOr<Json> ObjectOf(const Request& request) {
  if (request.body.empty()) return Json::object();
  Json json = Json::parse(request.body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("the body is not a JSON object");
  return json;
}

std::string Rfc3339(int64_t micros) {
  const absl::Time time = absl::FromUnixMicros(micros);
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", time, absl::UTCTimeZone());
}

Json ErrorJson(const absl::Status& status) {
  return {{"code", HttpStatus(status.code())}, {"message", std::string(status.message())}};
}

bool IsPaused(const sandbox::Sandbox& box) { return box.state() == sandbox::SANDBOX_STATE_PAUSED; }

bool IsLive(const sandbox::Sandbox& box) {
  return box.state() == sandbox::SANDBOX_STATE_RUNNING || IsPaused(box);
}

std::string TemplateOf(const sandbox::Sandbox& box) {
  const auto found = box.spec().labels().find(kTemplateLabel);
  return found == box.spec().labels().end() ? box.spec().image() : found->second;
}

absl::StatusOr<sandbox::Sandbox> LiveBox(const Surface& surface, const std::string& id) {
  ASSIGN_OR_RETURN(sandbox::Sandbox box, surface.sandboxes->Get(id));
  if (!IsLive(box)) return absl::NotFoundError(fmt::format("sandbox {} does not exist", id));
  return box;
}

Json BoxHandle(const Surface& surface, const sandbox::Sandbox& box) {
  const std::string token = surface.access->SandboxToken(box.id());
  return {{"templateID", TemplateOf(box)}, {"sandboxID", box.id()},
          {"clientID", kClientId},         {"envdVersion", kEnvdVersion},
          {"envdAccessToken", token},      {"trafficAccessToken", token},
          {"alias", TemplateOf(box)}};
}

absl::Status Prolong(LeaseTable* leases, const std::string& id, LeaseTable::Lease lease,
                     int64_t seconds) {
  lease.set_ends_us(base::WallMicros() + seconds * kMicrosPerSecond);
  lease.set_length_us(seconds * kMicrosPerSecond);
  return leases->Put(id, lease);
}

absl::StatusOr<Page> PageOf(const Request& request, size_t total) {
  size_t limit = kPageDefault;
  if (const std::string* text = request.query_param("limit");
      text != nullptr && (!absl::SimpleAtoi(*text, &limit) || limit < 1 || limit > kPageMax))
    return absl::InvalidArgumentError(fmt::format("limit must be 1 to {}", kPageMax));
  Page page;
  if (const std::string* token = request.query_param("nextToken");
      token != nullptr && !token->empty() &&
      (!absl::SimpleAtoi(*token, &page.begin) || page.begin > total))
    return absl::InvalidArgumentError("nextToken is none that a page ended with");
  page.end = std::min(total, page.begin + limit);
  return page;
}

void AddNextToken(const Page& page, size_t total, Response* response) {
  if (page.end < total) response->headers.push_back({"X-Next-Token", fmt::format("{}", page.end)});
}

void AddOwnerRoute(const Surface& surface, const char* method, const std::string& pattern,
                   std::function<Response(const Request&)> work, Router* router) {
  Route route;
  route.method = method;
  route.pattern = pattern;
  route.guard = [access = surface.access](const Request& request) -> std::optional<Response> {
    if (access->IsOwner(request)) return std::nullopt;
    return ErrorResponse(401, "X-API-Key must be the daemon's token");
  };
  route.body_max = kBodyMax;
  const ErrorForm form = [](const absl::Status& status) { return ErrorResponse(status); };
  route.handler = OnVerbThread(surface, form, std::move(work));
  router->Add(std::move(route));
}

void AddOwnerVerb(const Surface& surface, const char* method, const std::string& pattern,
                  std::function<absl::StatusOr<Response>(const Request&)> work, Router* router) {
  AddOwnerRoute(
      surface, method, pattern,
      [work = std::move(work)](const Request& request) {
        absl::StatusOr<Response> response = work(request);
        return response.ok() ? *std::move(response) : ErrorResponse(response.status());
      },
      router);
}

}  // namespace reprise::sandboxd::http
