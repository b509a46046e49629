// How fast an engine is on this machine, and what memory itself gives: for `reprise model bench`
// and the benchmarks.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/engine.h"

namespace reprise::engine {

struct SpeedOptions {
  int64_t batch = 1;        // sequences that share nothing
  int64_t context = 1024;   // tokens of each that are read first
  int64_t new_tokens = 64;  // then sampled, greedily, one a step
  int repeats = 3;          // the best counts
};

struct Speed {
  double prefill = 0, decode = 0;  // tokens a second, all sequences together
};

// Errors: as Engine::Step; INVALID_ARGUMENT for sizes below 1.
absl::StatusOr<Speed> MeasureSpeed(Engine* engine, const SpeedOptions& options);

// Bytes a second that `threads` threads read from memory, far above what caches hold; the best of
// a few tries.
double ReadBandwidth(int threads);

}  // namespace reprise::engine
