// The first rank's side of a group: it starts or calls the other ranks, tells each who the others
// are, and sends them commands.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/fd.h"
#include "engine/engine.h"
#include "engine/parallel/mesh.h"
#include "engine/parallel/parallel_engine.h"
#include "reprise/rank/v1/rank.pb.h"

namespace reprise::engine {

namespace rank_wire = reprise::rank::v1;

class RankGroup {
 public:
  // REQUIRES: 2 to kRanksMax ranks. Returns when every rank is connected to every other, and loads
  // `directory`: ReceiveLoaded says whether it could. UNAVAILABLE, naming the rank, where one does
  // not answer.
  static absl::StatusOr<std::unique_ptr<RankGroup>> Form(const std::string& directory,
                                                         const EngineOptions& options,
                                                         const ParallelOptions& parallel);
  // Ends the ranks that it started, and waits for them.
  ~RankGroup();

  Communicator* communicator() { return mesh_.get(); }
  // To every rank, in one order whatever the thread. An error stays.
  absl::Status Tell(const rank_wire::Command& command);
  // The answer of every rank to Start or LoadWeights; their digests must be `digest`.
  absl::Status ReceiveLoaded(const std::string& digest);
  // OK until a rank was lost.
  absl::Status status() const;

 private:
  struct Rank {
    std::string name;  // for errors
    base::UniqueFd commands;
    pid_t pid = -1;  // that this group started
  };

  RankGroup() = default;
  absl::Status StartRanks(const ParallelOptions& parallel, std::vector<std::string>* addresses);
  absl::StatusOr<std::string> StartRank(const std::string& helper, int rank);
  absl::Status Connect(const std::string& directory, const EngineOptions& options,
                       const std::vector<std::string>& addresses, const std::string& secret);

  std::unique_ptr<base::ScratchDir> sockets_;  // of ranks that this group started
  std::vector<Rank> ranks_;                    // but this one: [size - 1]
  std::unique_ptr<Mesh> mesh_;
  mutable absl::Mutex mutex_;
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace reprise::engine
