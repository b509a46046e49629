// The DeepSeek-V4 engine as its users see it: a loaded checkpoint, sequences with their KV state,
// and one step that feeds tokens to several sequences and samples from some. Tensors stay behind
// this header.
//
// Promise: the logits of a sequence are bitwise the same alone or in any batch, and however its
// tokens were cut into steps; a sampled token depends only on its logits, the sampling parameters,
// the seed and its position. Under several checkpoints the same holds for the same tokens fed under
// the same weights.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/token_masks.h"
#include "engine/tokenizer.h"

namespace reprise::engine {

struct ModelConfig;  // engine/config.h

// What is rounded between operations. kReference: to bfloat16 wherever the reference implementation
// does, key-value entries and the inputs of FP8 and FP4 matrices to FP8, indexer queries and keys
// to FP4 after a Hadamard transform: what quantised checkpoints were trained with. kFloat: nothing
// is. kAuto: kReference for a checkpoint with FP8 or FP4 matrices, kFloat for others.
enum class Numerics { kAuto, kReference, kFloat };

// What of a prompt's newest tokens a prefix cache on disk keeps beside the compressed entries. Going
// on after a prefix needs the windows and tails of its last tokens: kFull keeps them wherever a step
// ended on a page, kPeriodic at most once in `period` pages (the tokens after the last are computed
// again), kZero never: they are computed again from the last (layers + 1) * window tokens, with the
// entries that are known.
enum class PrefixWindows { kFull, kPeriodic, kZero };

struct PrefixDiskOptions {
  std::string directory = {};  // made where missing, this engine's alone; "": no cache on disk
  int64_t bytes_max = int64_t{16} << 30;
  PrefixWindows windows = PrefixWindows::kPeriodic;
  int64_t period = 8;  // pages
};

class Communicator;  // engine/communicator.h

struct EngineOptions {
  int threads = 0;          // 0: one a core
  int64_t max_context = 0;  // 0: max_position_embeddings of the config
  Numerics numerics = Numerics::kAuto;
  int64_t prefix_cache_bytes = 1 << 30;  // of states of prompts that were read before; 0: none
  // Lets the MTP block guess the next token but one, and a step verify the guess. The sampled
  // tokens are the same; only StepItem::max_samples says whether a step may give two.
  bool speculate = false;
  PrefixDiskOptions prefix_disk = {};  // not kZero with speculate
  // The processes that run the model together; outlives the engine. All ranks make the same calls
  // but for what is sampled. Not with speculate or prefix_disk.
  Communicator* ranks = nullptr;
};

// The distribution that a token is drawn from, in the order in which it is made: logit_bias is
// added; tokens that the sequence holds are divided by repetition_penalty where their logit is
// above 0 and multiplied where it is below; frequency_penalty times their count, and
// presence_penalty once, are taken from tokens that were sampled; what the constraint does not allow
// goes; then temperature, min_p, top_k, top_p, each over what the one before left.
struct SamplingParams {
  float temperature = 1.0f;  // 0 = greedy; limits: 0..100
  float top_p = 1.0f;        // (0, 1]
  uint64_t seed = 0;  // of the trajectory: the draw at a position is keyed by (seed, position)
  int32_t top_k = 0;  // 0: all
  float min_p = 0;    // [0, 1]: least probability, of that of the most probable token
  float repetition_penalty = 1;                       // (0, 100]
  float frequency_penalty = 0, presence_penalty = 0;  // [-100, 100]
  int64_t prompt_tokens = 0;  // tokens from this position on count as sampled
  std::vector<std::pair<int32_t, float>> logit_bias = {};  // [-1000, 1000]
  std::vector<int32_t> stop_ids = {};                      // set SampledToken::stop
  int32_t top_logprobs = 0;  // 0..1024: tokens to report beside the sampled
  int32_t kept_max = 0;      // 0..65536: report what was left to be drawn from, up to that many ids
  // What the answer may be; of this one sequence. nullptr: anything.
  std::shared_ptr<AnswerConstraint> constraint = {};
};

struct TokenLogprob {
  int32_t id = -1;
  float logprob = 0;      // ln of the probability under the sampling distribution; may be -inf
  float raw_logprob = 0;  // ln softmax of the raw logits at temperature 1
};

struct SampledToken {
  int32_t id = -1;
  float logprob = 0;  // as in TokenLogprob; 0 when greedy
  float raw_logprob = 0;
  bool stop = false;              // one of stop_ids
  std::vector<TokenLogprob> top;  // the best by raw_logprob, best first, the lower id first
  // Where a constraint forbade something: how many ids it left, and ln of the probability that they
  // had together without it (penalties and temperature applied, nothing cut; greedy: at temperature
  // 1), so that logprob + allowed_logprob is the token's own under that distribution. Else 0 and 0.
  int32_t allowed = 0;
  float allowed_logprob = 0;
  // What constraint, top_k, top_p and min_p left, ascending; empty: all of the vocabulary, or more
  // than kept_max.
  std::vector<int32_t> kept;
};

// The tensors of one checkpoint in memory, of the config and the tokenizer of the engine that
// loaded it. Its files must not be written while this lives.
class Weights {
 public:
  virtual ~Weights() = default;
  virtual const std::string& directory() const = 0;
  // As Engine::digest.
  virtual const std::string& digest() const = 0;
};

// The weights that made a part of a KV state: from token `begin` to the next origin's.
struct KvOrigin {
  std::string digest;  // of the weights
  int64_t begin = 0;
  bool operator==(const KvOrigin&) const = default;
};

// One growing sequence and its KV state. Made by an engine, used with that engine only.
class Sequence {
 public:
  virtual ~Sequence() = default;
  virtual int64_t length() const = 0;                    // tokens fed so far
  virtual int64_t memory_bytes() const = 0;              // of its KV state, with what it shares
  virtual absl::Span<const int32_t> tokens() const = 0;  // [length]
  // Of the whole state, in order; empty without tokens. No two neighbours have the same digest.
  virtual absl::Span<const KvOrigin> origins() const = 0;
  // A second sequence with the same tokens. Both share their state until they write.
  virtual std::unique_ptr<Sequence> Fork() const = 0;
  // Forgets the tokens from `length` on. OUT_OF_RANGE when more than kRewindTokens of the longest
  // length that it ever had would go (kv_state.h); then nothing changed.
  virtual absl::Status Rewind(int64_t length) = 0;
  // All of it as bytes, for Engine::Restore. Format: engine/FORMAT.md.
  virtual std::string Save() const = 0;
};

struct StepItem {
  Sequence* sequence = nullptr;
  absl::Span<const int32_t> tokens;          // appended at sequence->length(); at least one
  const SamplingParams* sampling = nullptr;  // nullptr: feed only
  const Weights* weights = nullptr;          // nullptr: those that the engine was loaded with
  bool want_routes = false;                  // record the experts of the fed tokens
  // 2: the step may sample a second token after a guess that proved right; then the first is fed
  // already, and sequence->length() says so. Nothing follows a stop token.
  int max_samples = 1;
  // Results:
  int32_t sampled_id = -1;            // of the first sampled token
  float logprob = 0;                  // likewise
  float raw_logprob = 0;              // likewise
  std::vector<SampledToken> sampled;  // one, or up to max_samples
  std::vector<uint16_t> routes;       // [tokens, layers, experts_per_token] when wanted
};

// Counted since the engine was loaded.
struct EngineStats {
  int64_t fed_tokens = 0;       // that steps were given
  int64_t computed_tokens = 0;  // that went through the model: less what sequences shared
  int64_t reused_tokens = 0;    // that NewSequence took from the prefix cache, or from disk
  int64_t guesses = 0, right_guesses = 0;
  int64_t kv_bytes = 0;  // of all states now, shared ones once
  int64_t prefix_cache_bytes =
      0;  // of those that the prefix cache of the engine's own weights holds
  int64_t prefix_disk_tokens = 0;  // of reused_tokens, from disk
  int64_t prefix_disk_bytes = 0;   // of the files there now
};

class Engine {
 public:
  // Loads config.json, tokenizer.json and the safetensors of `directory`. Everything is checked
  // against the config first; errors name file, tensor, expected, found.
  static absl::StatusOr<std::unique_ptr<Engine>> Load(const std::string& directory,
                                                      const EngineOptions& options = {});
  virtual ~Engine() = default;

  // The tensors of another checkpoint of the same architecture and tokenizer, for steps to use
  // beside or instead of the engine's own; the engine outlives them. Thread-safe, also during a
  // step. Errors as Load;
  // FAILED_PRECONDITION when config or tokenizer are not the engine's, naming the file.
  virtual absl::StatusOr<std::shared_ptr<const Weights>> LoadWeights(
      const std::string& directory) const = 0;
  // Those that it was loaded with.
  virtual std::shared_ptr<const Weights> weights() const = 0;

  // Empty, or already with the longest prefix of `tokens` whose state is in the prefix cache of
  // `weights` (nullptr: the engine's own), never all of them: go on with tokens[length()].
  virtual std::unique_ptr<Sequence> NewSequence(absl::Span<const int32_t> tokens = {},
                                                const Weights* weights = nullptr) = 0;
  // A sequence from the bytes of Sequence::Save, whose newest part `weights` made (nullptr: the
  // engine's own). DATA_LOSS: damaged; FAILED_PRECONDITION: saved under other weights or options.
  virtual absl::StatusOr<std::unique_ptr<Sequence>> Restore(std::string_view bytes,
                                                            const Weights* weights = nullptr) = 0;
  // Feeds and samples. Sequences that hold the same tokens and states and are fed the same under
  // the same weights are computed once and share their state. One thread at a time.
  // INVALID_ARGUMENT for an id outside the vocabulary, the same sequence twice, a context that
  // would grow past the limit, or weights of another engine; then nothing was fed.
  virtual absl::Status Step(absl::Span<StepItem> items) = 0;
  // Whether Step would take them; feeds nothing.
  virtual absl::Status CheckStep(absl::Span<const StepItem> items) const = 0;
  // The masks of a grammar over this vocabulary; those of the grammars that were asked for last are
  // kept. Thread-safe, also during a step. FAILED_PRECONDITION as TokenTrie::Make.
  virtual absl::StatusOr<std::shared_ptr<TokenMasks>> MasksFor(
      std::shared_ptr<const AnswerGrammar> grammar) const = 0;
  // Teacher-forced logits of all positions, float32 [tokens, vocab].
  virtual absl::StatusOr<std::vector<float>> Logits(absl::Span<const int32_t> tokens) = 0;

  virtual const ModelConfig& config() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  virtual EngineStats stats() const = 0;
  virtual int32_t vocab_size() const = 0;
  virtual int32_t eos_id() const = 0;
  virtual int64_t max_context() const = 0;
  // Bytes of the state of a sequence of so many tokens that shares nothing.
  virtual int64_t KvBytes(int64_t tokens) const = 0;
  // kReference or kFloat.
  virtual Numerics numerics() const = 0;
  // SHA-256 over config, tokenizer, tensor data of its own weights (a page of each tensor where
  // there is more than 1 GiB) and numerics, hexadecimal: what says that another engine would give
  // the same tokens.
  virtual const std::string& digest() const = 0;
};

}  // namespace reprise::engine
