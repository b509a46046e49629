// What becomes of trajectories that have ended: each is moved out of the journal into a file of its
// own, and by policy exported and forgotten when it is old enough, or when all of them take too
// much room. Nothing is forgotten that a trainer may still ask for: a group that is leased, or not
// yet acknowledged where the job's groups are leased at all.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "replay/trajectory_log.h"
#include "rollout/job_table.h"
#include "rollout/retention_options.h"
#include "rollout/sandboxes.h"

namespace reprise::rollout {

class Retainer {
 public:
  // All outlive this. Starts a thread. REQUIRES: CheckRetention was OK; export_dir is set for
  // kExport.
  Retainer(RetentionOptions options, JobTable* jobs, replay::TrajectoryLog* log,
           Sandboxes* sandboxes);
  // Waits for the file that is being written. REQUIRES: sandboxes->Shutdown() was called, or no
  // sandbox is waited for.
  ~Retainer();
  Retainer(const Retainer&) = delete;
  Retainer& operator=(const Retainer&) = delete;

  // One look at everything, by whoever calls; the thread's come as they come. What cannot be done
  // to one trajectory is logged and tried again with the next look.
  absl::Status Pass() ABSL_LOCKS_EXCLUDED(pass_mutex_);

 private:
  struct Ended;
  absl::Status Compact(JobRun& run, std::vector<Ended>* ended)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(pass_mutex_);
  // An ended job that is all in files, where nothing is ever dropped: not even its task set is
  // read.
  absl::StatusOr<bool> NothingToDo(const journal::JobRecord& record);
  // Adds one log to `ended`, compacted first where it is not.
  absl::Status CompactOne(const std::string& id, Ended* ended)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(pass_mutex_);
  absl::Status Drop(const Ended& ended) ABSL_EXCLUSIVE_LOCKS_REQUIRED(pass_mutex_);
  Retention PolicyOf(const JobRun& run) const;
  void Run();
  bool stopping() const ABSL_LOCKS_EXCLUDED(mutex_);

  const RetentionOptions options_;
  JobTable* const jobs_;
  replay::TrajectoryLog* const log_;
  Sandboxes* const sandboxes_;
  absl::Mutex pass_mutex_;
  uint64_t deleted_bytes_ ABSL_GUARDED_BY(pass_mutex_) = 0;  // since the disk got them back
  mutable absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace reprise::rollout
