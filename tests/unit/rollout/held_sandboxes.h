// Sandboxes for tests of what is above them, and how long those tests wait for anything.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "rollout/job_run.h"
#include "rollout/sandboxes.h"
#include "tests/unit/rollout/play.h"

namespace reprise::rollout {

inline constexpr absl::Duration kPatience = absl::Seconds(60);

// Every command exits with 0; while held, calls, or those of reward commands alone, wait until they
// are let go, their sandbox is stopped (which ends them, as sandboxd does), or all is shut down.
class HeldSandboxes final : public Sandboxes {
 public:
  absl::Status Create(const std::string&, const sandbox::SandboxSpec&) override {
    return absl::OkStatus();
  }
  absl::StatusOr<CallOutput> Execute(const sandbox::ExecuteRequest& request) override {
    absl::MutexLock lock(&mutex_);
    ++calls_[request.call_id()];
    auto go = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      const bool mine =
          held_ || (rewards_held_ && request.call_id().find("/reward/") != std::string::npos);
      return !mine || down_ || stopped_.count(request.sandbox_id()) != 0;
    };
    mutex_.Await(absl::Condition(&go));
    if (down_) return absl::CancelledError("shutting down");
    if (stopped_.count(request.sandbox_id()) != 0) return Ended(sandbox::OUTCOME_CANCELLED);
    return Exited(0, "1");
  }
  absl::Status Stop(const std::string& id) override {
    absl::MutexLock lock(&mutex_);
    stopped_.insert(id);
    return absl::OkStatus();
  }
  absl::Status Fork(const std::string&, const std::string&, const std::string&) override {
    return absl::OkStatus();
  }
  absl::Status Forget(const std::string& id) override {
    absl::MutexLock lock(&mutex_);
    if (!forget_.ok()) return forget_;
    forgotten_.insert(id);
    return absl::OkStatus();
  }
  // What Forget answers from now on.
  void FailForget(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    forget_ = std::move(status);
  }
  std::set<std::string> forgotten() {
    absl::MutexLock lock(&mutex_);
    return forgotten_;
  }
  absl::Status Pause(const std::string&) override {
    return absl::UnimplementedError("nothing to pause");
  }
  void Shutdown() override {
    absl::MutexLock lock(&mutex_);
    down_ = true;
  }
  void Hold(bool held) {
    absl::MutexLock lock(&mutex_);
    held_ = held;
  }
  void HoldRewards(bool held) {
    absl::MutexLock lock(&mutex_);
    rewards_held_ = held;
  }
  // Waits for the first call.
  bool WaitCall() {
    absl::MutexLock lock(&mutex_);
    auto some = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return !calls_.empty(); };
    return mutex_.AwaitWithTimeout(absl::Condition(&some), kPatience);
  }
  // That were begun.
  size_t calls() {
    absl::MutexLock lock(&mutex_);
    return calls_.size();
  }

 private:
  absl::Mutex mutex_;
  bool held_ ABSL_GUARDED_BY(mutex_) = false,
             rewards_held_ ABSL_GUARDED_BY(mutex_) = false, down_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, int> calls_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> stopped_ ABSL_GUARDED_BY(mutex_), forgotten_ ABSL_GUARDED_BY(mutex_);
  absl::Status forget_ ABSL_GUARDED_BY(mutex_);
};

// False when `done` did not come true while the job changed.
inline bool WaitFor(const JobRun& run, const std::function<bool()>& done) {
  absl::Time deadline = absl::Now() + kPatience;
  while (!done()) {
    uint64_t seen = run.version();
    if (done()) return true;
    if (absl::Now() > deadline) return false;
    run.WaitChange(seen, absl::Milliseconds(100));
  }
  return true;
}

}  // namespace reprise::rollout
