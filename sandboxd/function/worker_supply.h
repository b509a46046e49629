// Ready workers of the function tier: keeps a zygote running, asks it for workers ahead of need,
// hands them out.
#pragma once

#include <sys/types.h>

#include <deque>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/fd.h"

namespace reprise::sandboxd {

struct WorkerSupplyOptions {
  std::string program;    // reprise-supervisor
  std::string state_dir;  // of the tier
  std::string name;       // of its cgroups
  size_t pool = 4, max = 64;
};

class WorkerSupply {
 public:
  // How long Take waits for a worker, and for how many callers at once.
  static constexpr absl::Duration kWaitMax = absl::Seconds(60);
  static constexpr size_t kWaitersMax = 4096;
  static constexpr absl::Duration kHelloMax = absl::Seconds(20);
  static constexpr int kFailuresMax = 3;  // of workers, one after another: then the tier says so

  explicit WorkerSupply(WorkerSupplyOptions options);
  ~WorkerSupply();

  // OK when workers can be made here; else why not. `note` tells how they are bounded.
  absl::Status usable(std::string* note) ABSL_LOCKS_EXCLUDED(mutex_);
  // The id of a ready worker, which is the caller's from now on. RESOURCE_EXHAUSTED, UNAVAILABLE
  // (the tier cannot run here), CANCELLED after Stop.
  absl::StatusOr<std::string> Take() ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives back a worker that was not used.
  void GiveBack(std::string id) ABSL_LOCKS_EXCLUDED(mutex_);
  // Idle workers go; those with a call stay.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status StartZygote() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Refill() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Listen(int control);

  const WorkerSupplyOptions options_;
  absl::Mutex mutex_;
  absl::CondVar changed_;
  base::UniqueFd control_ ABSL_GUARDED_BY(mutex_);
  pid_t zygote_ ABSL_GUARDED_BY(mutex_) = -1;
  bool hello_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::string note_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  int failures_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t waiters_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  const std::string prefix_;  // of ids: unique for this daemon's life
  std::set<std::string> making_ ABSL_GUARDED_BY(mutex_), taken_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::string> ready_ ABSL_GUARDED_BY(mutex_);
  std::thread listener_;
};

}  // namespace reprise::sandboxd
