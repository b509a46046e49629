// The forward pass of DeepSeek-V4 on the CPU with weights as stored: hyper-connections, window
// attention with compressed blocks (CSA, HCA), sinks, grouped output, routed experts. Values
// between operations are float32, or rounded where the reference implementation rounds them
// (bfloat16; FP8 and FP4 for what a quantised checkpoint was trained with).
//
// Every value of a token depends on its own sequence alone and is computed in one fixed order, so
// logits are bitwise the same in any batch and for any cut of a prompt into passes.
//
// Several processes may run one model: each computes its heads and output groups, a range of the
// routed experts, of the rows of the last attention matrix and of the vocabulary, and all else
// alone; every one keeps the whole state of every sequence. What they gather are finished values, so
// the bits are those of one process.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/communicator.h"
#include "engine/config.h"
#include "engine/kv_state.h"
#include "engine/weights.h"
#include "engine/workers.h"

namespace reprise::engine {

// Consecutive tokens of one sequence in one pass.
struct Segment {
  KvState* kv = nullptr;             // tokens are appended to it
  int64_t start = 0;                 // position of the first token
  absl::Span<const int32_t> tokens;  // at least one, all below vocab_size
  uint16_t* routes = nullptr;        // [tokens, layers, experts_per_token], or not wanted
  float* logits = nullptr;           // [logit_rows, V] of the last tokens, or not wanted
  int64_t logit_rows = 1;
  // Forward: takes the residual streams after the last layer, [tokens, P, D], or not wanted.
  // Draft: has them.
  float* residual = nullptr;
};

inline constexpr int kWorkspaceBuffers = 28;
// Buffers of one pass; kept between passes so that they are not made anew. One pass at a time.
struct Workspace {
  std::vector<float> buffers[kWorkspaceBuffers];
  std::vector<int64_t> positions;
  std::vector<uint16_t> chosen;
};

class Model {
 public:
  // `config` outlives this. `reference`: round as the reference does; needs an index_dim that is a
  // power of two. `mtp`: sequences have room for the MTP block, so that Draft can run. `ranks`: the
  // processes that run the model together, or nullptr; then all make the same calls of Forward and
  // Draft in the same order, one at a time.
  Model(const ModelConfig* config, bool reference, bool mtp, Communicator* ranks = nullptr);

  // Feeds the segments, each of another sequence, at the length of its state. `weights` are of the
  // config; `workers` may be nullptr.
  void Forward(const ModelWeights& weights, absl::Span<const Segment> segments, Workers* workers,
               Workspace* workspace) const;
  // Runs the MTP block over positions whose residual is known; tokens[i] is the token after
  // position start + i. Logits are those of the token after that one. Positions before `start` were
  // run before.
  void Draft(const ModelWeights& weights, absl::Span<const Segment> segments, Workers* workers,
             Workspace* workspace) const;

  const ModelConfig& config() const { return *config_; }
  const KvLayout& layout() const { return layout_; }

 private:
  friend class ForwardPass;
  const ModelConfig* const config_;
  const bool reference_;
  Communicator* const ranks_;
  const KvLayout layout_;
  const std::vector<float> window_frequencies_;    // main table [rope_dim / 2]
  const std::vector<float> compress_frequencies_;  // with YaRN
};

}  // namespace reprise::engine
