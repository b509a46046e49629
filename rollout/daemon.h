// The rollout daemon as an object: `rolloutd` runs one alone, `reprise up` and the embedded default
// run one beside sandboxd. Owns its parts in start order: store, trajectory log, engine, sandbox
// client, scheduler, gRPC server, HTTP port.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/parallel/parallel_engine.h"
#include "rollout/retention_options.h"
#include "storage/store.h"

namespace reprise::rollout {

struct DaemonOptions {
  std::string state_dir;            // STATE/rolloutd: journal, KV states of paused jobs
  std::vector<std::string> listen;  // gRPC addresses
  std::string sandbox_address;      // of sandboxd
  storage::Durability durability = storage::Durability::kFsync;
  int threads = 0;  // of the engine, in each rank; 0 = one a core
  engine::ParallelOptions parallel;  // of each model
  int64_t kv_bytes = 0;  // of KV states that are decoded, for each model; 0 = no bound
  engine::PrefixDiskOptions prefix_disk;  // a directory in it for each model
  bool resume_jobs =
      true;  // false: journals are read and jobs' states set, nothing runs on its own
  RetentionOptions retention;         // of ended trajectories; runs with resume_jobs
  std::string http;                   // HOST:PORT of the HTTP port; "" = none
  std::string http_cert, http_key;    // PEM files for TLS on it; both or none
  std::string token_file;             // bearer token that its clients must show
  size_t http_requests = 256;         // under way on it at one time
  std::vector<std::string> models;    // checkpoint directories that it serves
  std::string thinking = "thinking";  // of its requests that do not choose: "thinking" or "chat"
};

class Daemon {
 public:
  // Opens the journal, goes on with every unfinished job, listens. UNAVAILABLE when another process
  // holds the journal.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const DaemonOptions& options);
  virtual ~Daemon() = default;
  virtual const std::vector<std::string>& addresses() const = 0;  // as bound
  virtual const std::string& http_address() const = 0;  // "http://HOST:PORT" as bound, or ""
};

}  // namespace reprise::rollout
