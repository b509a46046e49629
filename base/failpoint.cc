#include "base/failpoint.h"

#include <csignal>
#include <unistd.h>

#include <atomic>
#include <string>

#include <fmt/format.h>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/synchronization/mutex.h"

namespace reprise::base {
namespace {

struct Armed {
  absl::Mutex mutex;
  std::string name ABSL_GUARDED_BY(mutex);
  int64_t remaining ABSL_GUARDED_BY(mutex) = 0;
};

std::atomic<bool> any_armed{false};

Armed& State() {
  static Armed* state = new Armed;
  return *state;
}

}  // namespace

absl::Status ArmFailPoint(std::string_view spec) {
  size_t colon = spec.rfind(':');
  int64_t count = 0;
  if (colon == std::string_view::npos || colon == 0 ||
      !absl::SimpleAtoi(std::string(spec.substr(colon + 1)), &count) ||
      count < 1) {
    return absl::InvalidArgumentError(
        fmt::format("fail point \"{}\" is not NAME:N with N >= 1", spec));
  }
  Armed& state = State();
  absl::MutexLock lock(&state.mutex);
  state.name = std::string(spec.substr(0, colon));
  state.remaining = count;
  any_armed.store(true, std::memory_order_relaxed);
  return absl::OkStatus();
}

void FailPoint(std::string_view name) {
  if (!any_armed.load(std::memory_order_relaxed)) return;
  Armed& state = State();
  absl::MutexLock lock(&state.mutex);
  if (state.name == name && --state.remaining == 0) ::kill(::getpid(), SIGKILL);
}

}  // namespace reprise::base
