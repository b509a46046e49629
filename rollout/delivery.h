// Who has which finished group of a job: leases that end, and acknowledgements that do not. Every
// lease of a group has a number that is durable before the group leaves the daemon, and only the
// last number can settle the group, so that a trainer that was given up never settles what another
// one has. Times are wall clock, because a lease goes on over a restart. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "replay/trajectory_log.h"
#include "rollout/job_run.h"

namespace reprise::rollout {

inline constexpr uint32_t kMaxLeasedGroups = 1024;              // of one request
inline constexpr int64_t kMaxLeaseMs = 7ll * 24 * 3600 * 1000;  // trainers that save once a week
inline constexpr int64_t kDefaultLeaseMs = 600 * 1000;

class Delivery {
 public:
  // `log` outlives this. `now_us`: wall clock, microseconds.
  explicit Delivery(replay::TrajectoryLog* log, std::function<int64_t()> now_us = base::WallMicros)
      : log_(log), now_us_(std::move(now_us)) {}

  struct Lease {
    size_t first = 0;      // index of the group's first trajectory in the job
    uint32_t group = 0;    // ordinal
    uint64_t attempt = 0;  // fence
    int64_t until_us = 0;
  };
  // Leases up to `max_groups` groups that are whole and with nobody, in the order of the task set;
  // with `in_order`, none behind an unfinished one. FAILED_PRECONDITION for a job whose files are
  // not what they were. REQUIRES: limits above.
  absl::StatusOr<std::vector<Lease>> Take(const JobRun& run, uint32_t max_groups, int64_t lease_ms,
                                          bool in_order);

  // One group under the number of its lease.
  struct Fence {
    uint32_t group = 0;
    uint64_t attempt = 0;
  };
  // All or none. A lease that ended is still good while nobody else got the group; doing it again
  // is no error. FAILED_PRECONDITION for another number than the last; NOT_FOUND for no such group.
  absl::Status Ack(const JobRun& run, const std::vector<Fence>& fences);
  // Gives groups back at once; their numbers are used up. The errors of Ack, and
  // FAILED_PRECONDITION for a group that is acknowledged.
  absl::Status Release(const JobRun& run, const std::vector<Fence>& fences);

  struct Counts {
    uint32_t pending = 0, ready = 0, leased = 0, acknowledged = 0, dropped = 0;
  };
  absl::StatusOr<Counts> Count(const JobRun& run);
  // Whether somebody has the group at `position` and has not settled it.
  absl::StatusOr<bool> IsLeased(const JobRun& run, size_t position);

 private:
  struct Job {
    absl::Mutex mutex;
    bool read ABSL_GUARDED_BY(mutex) = false;
    std::map<uint32_t, journal::Delivery> groups ABSL_GUARDED_BY(mutex);  // ever leased, by ordinal
  };
  enum class Place { kPending, kReady, kLeased, kAcknowledged, kDropped };

  Job* JobOf(const JobRun& run);
  absl::Status ReadLocked(const JobRun& run, Job* job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(job->mutex);
  Place PlaceLocked(const JobRun& run, size_t position, const Job& job) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(job.mutex);
  absl::Status Settle(const JobRun& run, const std::vector<Fence>& fences, bool acknowledge);

  replay::TrajectoryLog* const log_;
  const std::function<int64_t()> now_us_;
  absl::Mutex mutex_;
  std::map<std::pair<std::string, int64_t>, std::unique_ptr<Job>> jobs_
      ABSL_GUARDED_BY(mutex_);  // by id and time of submission
};

}  // namespace reprise::rollout
