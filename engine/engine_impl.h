// The engine behind engine.h. engine.cc loads and checks; engine_step.cc feeds and samples.
#pragma once

#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/checkpoint.h"
#include "engine/config.h"
#include "engine/engine.h"
#include "engine/model.h"
#include "engine/prefix_cache.h"
#include "engine/prefix_disk.h"
#include "engine/sequence.h"
#include "engine/weights.h"
#include "engine/workers.h"

namespace reprise::engine {

class EngineImpl;

class LoadedWeights final : public Weights {
 public:
  const std::string& directory() const override { return checkpoint->directory(); }
  const std::string& digest() const override { return digest_text; }

  const EngineImpl* engine = nullptr;  // that loaded it
  std::unique_ptr<Checkpoint> checkpoint;
  ModelWeights tensors;  // point into the checkpoint
  std::string digest_text;
  std::unique_ptr<PrefixCache> cache;  // of states that these weights made alone
};

class EngineImpl final : public Engine {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Load(const std::string& directory,
                                                      const EngineOptions& options);

  absl::StatusOr<std::shared_ptr<const Weights>> LoadWeights(
      const std::string& directory) const override;
  std::shared_ptr<const Weights> weights() const override { return own_; }
  std::unique_ptr<Sequence> NewSequence(absl::Span<const int32_t> tokens,
                                        const Weights* weights) override;
  absl::StatusOr<std::unique_ptr<Sequence>> Restore(std::string_view bytes,
                                                    const Weights* weights) override;
  absl::Status Step(absl::Span<StepItem> items) override;
  absl::Status CheckStep(absl::Span<const StepItem> items) const override;
  absl::StatusOr<std::shared_ptr<TokenMasks>> MasksFor(
      std::shared_ptr<const AnswerGrammar> grammar) const override;
  absl::StatusOr<std::vector<float>> Logits(absl::Span<const int32_t> tokens) override;

  const ModelConfig& config() const override { return config_; }
  const Tokenizer& tokenizer() const override { return *tokenizer_; }
  EngineStats stats() const override;
  int32_t vocab_size() const override { return static_cast<int32_t>(config_.vocab_size); }
  int32_t eos_id() const override { return config_.eos_id; }
  int64_t max_context() const override { return max_context_; }
  int64_t KvBytes(int64_t tokens) const override { return model_->layout().Bytes(tokens); }
  Numerics numerics() const override {
    return reference_ ? Numerics::kReference : Numerics::kFloat;
  }
  const std::string& digest() const override { return own_->digest_text; }

 private:
  // What a step does for one item, or for several that hold and are fed the same.
  struct Work {
    StepItem* item = nullptr;
    EngineSequence* sequence = nullptr;
    const LoadedWeights* weights = nullptr;
    std::vector<size_t> same;          // other items of the step
    absl::Span<const int32_t> tokens;  // to feed, with the guess
    std::vector<int32_t> with_guess;
    bool guessed = false;
    bool ends_page = false;  // its state goes to the cache at the end
    int64_t fed = 0;
    int64_t start = 0;  // length before the step
    bool wants_logits = false;
    std::vector<uint16_t> routes;  // [tokens, layers, experts_per_token] when wanted
    float* logits = nullptr;       // [1 or 2, V]
    int64_t residual_start = 0;    // position of the first row of `residual`
    std::vector<float> residual;   // [rows, P, D] of the newest pass, with speculate
  };
  // One run of the MTP block: positions of one sequence with the tokens after them.
  struct DraftWork {
    EngineSequence* sequence = nullptr;
    const LoadedWeights* weights = nullptr;
    int64_t start = 0;
    std::vector<int32_t> next;
    std::vector<float> residual;               // [next, P, D]
    const SamplingParams* sampling = nullptr;  // a guess is wanted
  };

  // Opens and checks the checkpoint; tensors, digest and cache are still to be made.
  absl::StatusOr<std::shared_ptr<LoadedWeights>> OpenWeights(const std::string& directory) const;
  absl::Status BindTensors(LoadedWeights* weights) const;
  const LoadedWeights* Of(const Weights* weights) const {
    return weights == nullptr ? own_.get() : static_cast<const LoadedWeights*>(weights);
  }
  absl::Status CheckOptions(const EngineOptions& options, const Checkpoint& checkpoint);
  absl::Status Start(const EngineOptions& options, const Checkpoint& checkpoint);
  // The state after as many of `tokens` as the disk serves better than one that has `have` of them;
  // nullopt when it does not. What it lacks is computed.
  std::optional<KvState> FromDisk(absl::Span<const int32_t> tokens, int64_t have,
                                  const LoadedWeights& weights);
  // Tokens before the end of a prefix that have to be computed again when its block is not kept.
  int64_t RecomputedTokens() const;

  // Work for the items; those that can share one are found.
  std::vector<Work> Plan(absl::Span<StepItem> items);
  // The next segments of the step, at most one a work, all under the same weights. False when all
  // is fed.
  bool NextPass(absl::Span<Work> works, std::vector<Segment>* segments, std::vector<Work*>* owners);
  void RunPass(const LoadedWeights& weights, const std::vector<Segment>& segments);
  void AfterPass(absl::Span<Work* const> owners, const std::vector<Segment>& segments);
  // Puts the state at the end of a page into the cache of the work's weights.
  void KeepState(const Work& work);
  absl::Status SampleInto(Work* work, StepItem* item, EngineSequence* sequence);
  // The draft for the rows of the work's newest pass that `sequence` keeps; `last` is the token
  // after the newest, or -1.
  DraftWork MakeDraft(const Work& work, EngineSequence* sequence, int32_t last) const;
  absl::Status RunDrafts(std::vector<DraftWork> drafts);
  int64_t flat() const { return config_.hc_streams * config_.hidden_size; }
  size_t route_row() const {
    return static_cast<size_t>(config_.num_layers * config_.experts_per_token);
  }

  ModelConfig config_;
  std::unique_ptr<Tokenizer> tokenizer_;
  int64_t max_context_ = 0;
  int64_t prefix_cache_bytes_ = 0;
  bool small_ = false;      // weights stay in cache: threads may run whole sequences by themselves
  bool reference_ = false;  // numerics
  bool speculate_ = false;
  Communicator* ranks_ = nullptr;
  std::unique_ptr<Model> model_;
  std::unique_ptr<PrefixDisk> disk_;          // null without one
  std::shared_ptr<const LoadedWeights> own_;  // its cache ends before the layout of model_
  std::unique_ptr<Workers> workers_;
  std::vector<Workspace> workspaces_;  // [threads]
  std::vector<float> logits_;          // of the step
  EngineStats stats_;

  mutable absl::Mutex masks_mutex_;
  mutable std::shared_ptr<const TokenTrie> trie_ ABSL_GUARDED_BY(masks_mutex_);  // null at first
  // The most recently asked for first.
  mutable std::list<std::shared_ptr<TokenMasks>> masks_ ABSL_GUARDED_BY(masks_mutex_);
};

}  // namespace reprise::engine
