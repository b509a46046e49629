#include "clients/cli/context.h"

#include "absl/strings/cord.h"

namespace reprise::cli {
namespace {

constexpr char kUsagePayload[] = "reprise/usage";

}  // namespace

absl::Status UsageError(std::string_view message) {
  absl::Status status = absl::InvalidArgumentError(std::string(message));
  status.SetPayload(kUsagePayload, absl::Cord());
  return status;
}

bool IsUsageError(const absl::Status& status) {
  return status.GetPayload(kUsagePayload).has_value();
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

}  // namespace reprise::cli
