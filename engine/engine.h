// The DeepSeek-V4 engine as its users see it: a loaded checkpoint, sequences with their KV state,
// and one step that feeds tokens to several sequences and samples from some. Tensors stay behind
// this header.
//
// Promise: the logits of a sequence are bitwise the same alone or in any batch, and however its
// tokens were cut into steps; a sampled token depends only on its logits, the sampling parameters,
// the seed and its position.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/tokenizer.h"

namespace reprise::engine {

struct ModelConfig;  // engine/config.h

// What is rounded between operations. kReference: to bfloat16 wherever the reference implementation
// does, key-value entries and the inputs of FP8 and FP4 matrices to FP8, indexer queries and keys
// to FP4 after a Hadamard transform: what quantised checkpoints were trained with. kFloat: nothing
// is. kAuto: kReference for a checkpoint with FP8 or FP4 matrices, kFloat for others.
enum class Numerics { kAuto, kReference, kFloat };

struct EngineOptions {
  int threads = 0;          // 0: one a core
  int64_t max_context = 0;  // 0: max_position_embeddings of the config
  Numerics numerics = Numerics::kAuto;
};

struct SamplingParams {
  float temperature = 1.0f;  // 0 = greedy; limits: 0..100
  float top_p = 1.0f;        // (0, 1]
  uint64_t seed = 0;  // of the trajectory: the draw at a position is keyed by (seed, position)
};

// One growing sequence and its KV state. Made by an engine, used with that engine only.
class Sequence {
 public:
  virtual ~Sequence() = default;
  virtual int64_t length() const = 0;        // tokens fed so far
  virtual int64_t memory_bytes() const = 0;  // of its KV state
};

struct StepItem {
  Sequence* sequence = nullptr;
  absl::Span<const int32_t> tokens;          // appended at sequence->length(); at least one
  const SamplingParams* sampling = nullptr;  // nullptr: feed only
  bool want_routes = false;                  // record the experts of the fed tokens
  // Results:
  int32_t sampled_id = -1;
  float logprob = 0;             // ln of the probability under the sampling distribution
  float raw_logprob = 0;         // ln softmax of the raw logits at temperature 1
  std::vector<uint16_t> routes;  // [tokens, layers, experts_per_token] when wanted
};

class Engine {
 public:
  // Loads config.json, tokenizer.json and the safetensors of `directory`. Everything is checked
  // against the config first; errors name file, tensor, expected, found.
  static absl::StatusOr<std::unique_ptr<Engine>> Load(const std::string& directory,
                                                      const EngineOptions& options = {});
  virtual ~Engine() = default;

  virtual std::unique_ptr<Sequence> NewSequence() = 0;
  // Feeds and samples. One thread at a time. INVALID_ARGUMENT for an id outside the vocabulary, the
  // same sequence twice, or a context that would grow past the limit; then nothing was fed.
  virtual absl::Status Step(absl::Span<StepItem> items) = 0;
  // Teacher-forced logits of all positions, float32 [tokens, vocab].
  virtual absl::StatusOr<std::vector<float>> Logits(absl::Span<const int32_t> tokens) = 0;

  virtual const ModelConfig& config() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  virtual int32_t vocab_size() const = 0;
  virtual int32_t eos_id() const = 0;
  virtual int64_t max_context() const = 0;
  // kReference or kFloat.
  virtual Numerics numerics() const = 0;
  // SHA-256 over config, tokenizer, tensor data and numerics, hexadecimal: two engines with the
  // same digest give the same tokens.
  virtual const std::string& digest() const = 0;
};

}  // namespace reprise::engine
