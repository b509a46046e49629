// One model that several processes run: this one, the first rank, and others that mirror it. Every
// rank keeps every sequence; each computes its part of every layer (model.h). Sampling is done here
// alone. Logits, and so tokens, are bitwise those of one process.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"

namespace reprise::engine {

inline constexpr int kRanksMax = 64;

struct ParallelOptions {
  int ranks =
      1;  // processes on this host, this one included: the others are started and ended here
  // Instead: ranks on any hosts, `reprise-rank` listening at these addresses (HOST:PORT or
  // unix:PATH) over the same files; `secret_file` holds what their --secret-file does, "" = they
  // have none.
  std::vector<std::string> others;
  std::string secret_file;
  std::string helper;  // reprise-rank; "" = beside this program

  int size() const { return others.empty() ? ranks : static_cast<int>(others.size()) + 1; }
};

// Engine::Load on `parallel.size()` processes. `options.threads` counts those of one rank; 0 = the
// cores of this host divided among its ranks. Beside the errors of Load: UNAVAILABLE where a rank
// does not answer; FAILED_PRECONDITION where a rank has other files under that name.
//
// Steps then also fail with UNAVAILABLE, naming the rank, once one is lost: this engine is of no
// more use, and nothing that it has sampled is wrong.
absl::StatusOr<std::unique_ptr<Engine>> LoadParallel(const std::string& directory,
                                                     const EngineOptions& options,
                                                     const ParallelOptions& parallel);

}  // namespace reprise::engine
