// The rollout daemon as an object: `rolloutd` runs one alone, `reprise up` and the embedded default
// run one beside sandboxd. Owns its parts in start order: store, trajectory log, engine, sandbox
// client, scheduler, gRPC server.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "storage/store.h"

namespace reprise::rollout {

struct DaemonOptions {
  std::string state_dir;            // STATE/rolloutd: journal
  std::vector<std::string> listen;  // gRPC addresses
  std::string sandbox_address;      // of sandboxd
  storage::Durability durability = storage::Durability::kFsync;
  int threads = 0;  // of the engine; 0 = one a core
  bool resume_jobs =
      true;  // false: journals are read and jobs' states set, nothing runs on its own
};

class Daemon {
 public:
  // Opens the journal, goes on with every unfinished job, listens. UNAVAILABLE when another process
  // holds the journal.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const DaemonOptions& options);
  virtual ~Daemon() = default;
  virtual const std::vector<std::string>& addresses() const = 0;  // as bound
};

}  // namespace reprise::rollout
