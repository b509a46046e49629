// Ranges of host user ids for sandboxes: each container of a daemon has 65536 ids that no other one
// has. The start is random, so that daemons which share a host rarely meet.
#pragma once

#include <cstdint>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace reprise::sandboxd {

class IdPool {
 public:
  IdPool();
  // The first id of a free range. RESOURCE_EXHAUSTED when kMappedSandboxesMax are taken.
  absl::StatusOr<uint32_t> Take() ABSL_LOCKS_EXCLUDED(mutex_);
  // A range that is in use already, or is not any more. 0 and ids that are no start of a range are
  // ignored.
  void Reserve(uint32_t base_id) ABSL_LOCKS_EXCLUDED(mutex_);
  void Return(uint32_t base_id) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Mutex mutex_;
  std::set<uint32_t> taken_ ABSL_GUARDED_BY(mutex_);
  uint32_t next_ ABSL_GUARDED_BY(mutex_);  // index of the range to try first
};

}  // namespace reprise::sandboxd
