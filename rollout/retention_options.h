// How long ended trajectories stay, as a daemon is told.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace reprise::rollout {

// What becomes of a trajectory in a file of its own, once nobody may still ask for it and it is old
// enough, or the files take too much room.
enum class Retention {
  kDaemon,  // as the daemon was started
  kKeep,    // the file stays
  kExport,  // its record goes to the daemon's directory for them, then it is dropped
  kDrop     // it is forgotten
};

struct RetentionOptions {
  Retention policy = Retention::kKeep;  // of jobs that do not say; never kDaemon
  int64_t after_s = 0;                  // seconds since it was sealed; 0 = age alone is no reason
  int64_t bytes_max = 0;                // of all files; the oldest go first. 0 = no bound
  std::string export_dir;  // of kExport, made when it is missing; "" = STATE/rolloutd/exported
  int64_t every_s = 60;    // between two looks at what has ended
};

// INVALID_ARGUMENT for a negative number, and for a policy that forgets with nothing that says
// when.
absl::Status CheckRetention(const RetentionOptions& options);

}  // namespace reprise::rollout
