// Finds the daemon that a command speaks to, or starts one inside the command: an address that was
// given, else the daemon that serves the state directory, else one of its own on that directory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/fd.h"
#include "rollout/client.h"
#include "rollout/embedded.h"

namespace reprise::cli {

struct RolloutTarget {
  std::string server;  // of rolloutd, e.g. "unix:/state/rolloutd.sock"; "" = look at the state
  std::string state;   // state directory
  int threads = 0;     // of an engine of our own; 0 = one a core
  engine::ParallelOptions parallel;     // likewise
  std::vector<std::string> bind_roots;  // of a sandboxd of our own
};

// A rollout service to speak to, for as long as this lives. Members go in the opposite order: the
// client before the daemon that it speaks to.
struct RolloutAccess {
  std::unique_ptr<base::ScratchDir> scratch;    // of the reader's socket
  std::unique_ptr<rollout::Embedded> embedded;  // both daemons, when they are ours
  std::unique_ptr<rollout::Daemon> reader;  // rolloutd alone with no job running, when it is ours
  std::unique_ptr<rollout::RolloutClient> client;
  std::string address;
};

// Usage error when the target names neither server nor state.
absl::Status CheckTarget(const RolloutTarget& target);

// To run jobs. Usage error as CheckTarget. REQUIRES: no other
// threads yet.
absl::StatusOr<RolloutAccess> OpenToRun(const RolloutTarget& target);
// To read journals and set states; a job never runs by this. NOT_FOUND when the state directory
// has no journal of rollouts.
absl::StatusOr<RolloutAccess> OpenToRead(const RolloutTarget& target);

}  // namespace reprise::cli
