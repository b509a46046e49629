#include "sandboxd/api/http/judge_box.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/status_macros.h"

namespace reprise::sandboxd::http {
namespace {

constexpr char kBoxId[] = "run-code";
constexpr int kBoxesMax = 1000;  // ids tried, where sandboxes of that name were stopped

}  // namespace

absl::StatusOr<std::string> JudgeBox::Id() {
  absl::MutexLock lock(&mutex_);
  for (; number_ < kBoxesMax; ++number_) {
    sandbox::CreateRequest request;
    request.set_sandbox_id(number_ == 0 ? std::string(kBoxId)
                                        : fmt::format("{}-{}", kBoxId, number_));
    request.mutable_spec()->set_tier(sandbox::TIER_FUNCTION);
    ASSIGN_OR_RETURN(sandbox::CreateResponse made, sandboxes_->Create(request));
    if (made.sandbox().state() != sandbox::SANDBOX_STATE_STOPPED) return request.sandbox_id();
  }
  return absl::InternalError(fmt::format("{} sandboxes for /run_code were stopped", kBoxesMax));
}

Response InvalidRun(std::string_view what) {
  const nlohmann::json body = {{"detail", what}};
  return JsonResponse(422, body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

Response RefusedRun(const absl::Status& status, Response (*platform)(std::string_view message)) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kDeadlineExceeded:
      return ErrorResponse(504, std::string(status.message()));
    case absl::StatusCode::kInvalidArgument:
      return InvalidRun(std::string(status.message()));
    case absl::StatusCode::kFailedPrecondition:
      return ErrorResponse(status);
    default:
      return platform(std::string(status.message()));
  }
}

Guard OwnerGuard(const Surface& surface) {
  return [access = surface.access](const Request& request) -> std::optional<Response> {
    if (access->IsOwner(request)) return std::nullopt;
    return ErrorResponse(401,
                         "show the daemon's token: as X-API-Key, or in the URL as "
                         "http://any:TOKEN@HOST:PORT");
  };
}

}  // namespace reprise::sandboxd::http
