#include "sandboxd/api/http/access.h"

#include <algorithm>

#include <fmt/format.h>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "replay/sha256.h"

namespace reprise::sandboxd::http {
namespace {

constexpr std::string_view kBearer = "Bearer ";
constexpr std::string_view kBasic = "Basic ";

}  // namespace

std::optional<BasicCredentials> BasicOf(const Request& request) {
  const std::string_view value = request.header("authorization");
  if (!EqualsIgnoreCase(value.substr(0, kBasic.size()), kBasic)) return std::nullopt;
  std::string decoded;
  const std::string_view encoded = value.substr(kBasic.size());
  if (!absl::Base64Unescape({encoded.data(), encoded.size()}, &decoded)) return std::nullopt;
  const size_t colon = std::min(decoded.find(':'), decoded.size());
  BasicCredentials credentials;
  credentials.user = decoded.substr(0, colon);
  if (colon < decoded.size()) credentials.password = decoded.substr(colon + 1);
  return credentials;
}

bool Access::IsOwner(const Request& request) const {
  if (authorizer_->Matches(request.header("x-api-key"))) return true;
  const std::string_view value = request.header("authorization");
  if (EqualsIgnoreCase(value.substr(0, kBearer.size()), kBearer))
    return authorizer_->Matches(value.substr(kBearer.size()));
  const std::optional<BasicCredentials> basic = BasicOf(request);
  return basic.has_value() && authorizer_->Matches(basic->password);
}

std::string Access::Proof(std::string_view name) const {
  return authorizer_->Derive(fmt::format("sandbox:{}", name));
}

std::string Access::SandboxToken(std::string_view sandbox_id) const {
  return fmt::format("{}.{}", sandbox_id, Proof(sandbox_id));
}

std::string_view Access::SandboxOf(std::string_view token) {
  return token.substr(0, std::min(token.rfind('.'), token.size()));
}

bool Access::MayUse(const Request& request, std::string_view sandbox_id) const {
  const std::string token = SandboxToken(sandbox_id);
  return EqualInConstantTime(request.header("x-access-token"), token) ||
         EqualInConstantTime(request.header("e2b-traffic-access-token"), token) || IsOwner(request);
}

bool Access::IsSigned(const Request& request, std::string_view sandbox_id,
                      std::string_view operation, int64_t now_s) const {
  const std::string* shown = request.query_param("signature");
  if (shown == nullptr) return false;
  const std::string* path = request.query_param("path");
  const std::string* user = request.query_param("username");
  const std::string* expiration = request.query_param("signature_expiration");
  std::string text = fmt::format("{}:{}:{}:{}", path == nullptr ? "" : *path, operation,
                                 user == nullptr ? "" : *user, SandboxToken(sandbox_id));
  if (expiration != nullptr) {
    int64_t until = 0;
    if (!absl::SimpleAtoi(*expiration, &until) || until < now_s) return false;
    text += fmt::format(":{}", *expiration);
  }
  const std::string digest = replay::Sha256Of(text);
  std::string expected = absl::Base64Escape(digest);
  while (!expected.empty() && expected.back() == '=') expected.pop_back();
  return EqualInConstantTime(*shown, fmt::format("v1_{}", expected));
}

}  // namespace reprise::sandboxd::http
