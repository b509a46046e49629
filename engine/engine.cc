#include "engine/engine.h"

#include <algorithm>
#include <set>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "engine/checkpoint.h"
#include "engine/config.h"
#include "engine/digest.h"
#include "engine/kv_state.h"
#include "engine/model.h"
#include "engine/sampler.h"
#include "engine/weights.h"
#include "engine/workers.h"

namespace reprise::engine {
namespace {

constexpr int kThreadsMax = 1024;
// Tokens in one pass; longer steps are cut. Bounds the memory of a pass.
constexpr int64_t kPassTokens = 256;
// Weights up to this size stay in cache, so that every thread may run whole sequences by itself.
// Bytes.
constexpr uint64_t kSmallModelBytes = 64 << 20;

class EngineSequence final : public Sequence {
 public:
  EngineSequence(const void* owner, const KvLayout* layout) : owner_(owner), kv_(layout) {}
  int64_t length() const override { return kv_.length(); }
  int64_t memory_bytes() const override { return kv_.memory_bytes(); }
  const void* owner() const { return owner_; }
  KvState* kv() { return &kv_; }

 private:
  const void* const owner_;
  KvState kv_;
};

class EngineImpl final : public Engine {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Load(const std::string& directory,
                                                      const EngineOptions& options) {
    auto engine = std::make_unique<EngineImpl>();
    ASSIGN_OR_RETURN(engine->config_, LoadConfig(directory));
    ASSIGN_OR_RETURN(engine->tokenizer_, Tokenizer::Load(directory + "/tokenizer.json"));
    ASSIGN_OR_RETURN(engine->checkpoint_, Checkpoint::Open(directory));
    RETURN_IF_ERROR(engine->checkpoint_->CheckAgainst(engine->config_));
    RETURN_IF_ERROR(engine->CheckOptions(options));
    if (engine->tokenizer_->vocab_size() > engine->config_.vocab_size) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tokenizer.json has {} tokens and config.json vocab_size {}", directory,
                      engine->tokenizer_->vocab_size(), engine->config_.vocab_size));
    }
    ASSIGN_OR_RETURN(engine->weights_, BindWeights(*engine->checkpoint_, engine->config_));
    ASSIGN_OR_RETURN(engine->digest_, CheckpointDigest(*engine->checkpoint_, engine->reference_));
    engine->Start(options);
    return engine;
  }

  std::unique_ptr<Sequence> NewSequence() override {
    return std::make_unique<EngineSequence>(this, &model_->layout());
  }

  absl::Status Step(absl::Span<StepItem> items) override {
    RETURN_IF_ERROR(CheckItems(items));
    for (StepItem& item : items) {
      item.routes.clear();
      if (item.want_routes) {
        item.routes.resize(item.tokens.size() *
                           static_cast<size_t>(config_.num_layers * config_.experts_per_token));
      }
    }
    logits_.resize(items.size() * static_cast<size_t>(config_.vocab_size));
    std::vector<size_t> fed(items.size(), 0);
    std::vector<Segment> segments;
    while (NextPass(items, &fed, &segments)) RunPass(segments);
    for (size_t i = 0; i < items.size(); ++i) {
      if (items[i].sampling == nullptr) continue;
      ASSIGN_OR_RETURN(const SampledToken token,
                       Sample(LogitsOf(i), *items[i].sampling, items[i].sequence->length()));
      items[i].sampled_id = token.id;
      items[i].logprob = token.logprob;
      items[i].raw_logprob = token.raw_logprob;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<float>> Logits(absl::Span<const int32_t> tokens) override {
    EngineSequence sequence(this, &model_->layout());
    StepItem item;
    item.sequence = &sequence;
    item.tokens = tokens;
    RETURN_IF_ERROR(CheckItems(absl::MakeSpan(&item, 1)));
    std::vector<float> logits(tokens.size() * static_cast<size_t>(config_.vocab_size));
    for (size_t at = 0; at < tokens.size(); at += kPassTokens) {
      Segment segment;
      segment.kv = sequence.kv();
      segment.tokens = tokens.subspan(at, kPassTokens);
      segment.logits = logits.data() + at * static_cast<size_t>(config_.vocab_size);
      segment.all_logits = true;
      model_->Forward({&segment, 1}, workers_.get(), &workspaces_[0]);
    }
    return logits;
  }

  const ModelConfig& config() const override { return config_; }
  const Tokenizer& tokenizer() const override { return *tokenizer_; }
  int32_t vocab_size() const override { return static_cast<int32_t>(config_.vocab_size); }
  int32_t eos_id() const override { return config_.eos_id; }
  int64_t max_context() const override { return max_context_; }
  Numerics numerics() const override {
    return reference_ ? Numerics::kReference : Numerics::kFloat;
  }
  const std::string& digest() const override { return digest_; }

 private:
  absl::Status CheckOptions(const EngineOptions& options) {
    reference_ = options.numerics == Numerics::kReference ||
                 (options.numerics == Numerics::kAuto && checkpoint_->quantised());
    if (reference_ && (config_.index_dim & (config_.index_dim - 1)) != 0) {
      return absl::InvalidArgumentError(fmt::format(
          "{}: index_head_dim {} is no power of two, which reference numerics need; load it with "
          "numerics = float",
          checkpoint_->directory(), config_.index_dim));
    }
    if (options.threads < 0 || options.threads > kThreadsMax) {
      return absl::InvalidArgumentError(fmt::format(
          "engine threads: {}; possible: 0 (one a core) to {}", options.threads, kThreadsMax));
    }
    if (options.max_context < 0 || options.max_context > config_.max_context) {
      return absl::InvalidArgumentError(
          fmt::format("engine context: {}; possible: 0 (the model's own) to {}",
                      options.max_context, config_.max_context));
    }
    return absl::OkStatus();
  }

  void Start(const EngineOptions& options) {
    max_context_ = options.max_context == 0 ? config_.max_context : options.max_context;
    const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    workers_ = std::make_unique<Workers>(options.threads == 0 ? cores : options.threads);
    workspaces_.resize(static_cast<size_t>(workers_->threads()));
    uint64_t bytes = 0;
    for (const auto& [name, view] : checkpoint_->tensors()) bytes += view.bytes;
    small_ = bytes <= kSmallModelBytes;
    model_ = std::make_unique<Model>(&config_, &weights_, reference_);
  }

  absl::Status CheckItems(absl::Span<const StepItem> items) const {
    std::set<const Sequence*> seen;
    for (const StepItem& item : items) {
      const auto* sequence = dynamic_cast<const EngineSequence*>(item.sequence);
      if (sequence == nullptr || sequence->owner() != this) {
        return absl::InvalidArgumentError("a step names a sequence that this engine did not make");
      }
      if (!seen.insert(sequence).second)
        return absl::InvalidArgumentError("a step names the same sequence twice");
      if (item.tokens.empty())
        return absl::InvalidArgumentError("a step feeds no token to a sequence");
      for (int32_t id : item.tokens) {
        if (id >= 0 && id < config_.vocab_size) continue;
        return absl::InvalidArgumentError(
            fmt::format("token id {} is outside the vocabulary of {}", id, config_.vocab_size));
      }
      const int64_t length = sequence->length() + static_cast<int64_t>(item.tokens.size());
      if (length > max_context_) {
        return absl::InvalidArgumentError(
            fmt::format("a sequence of {} tokens exceeds the context of {}", length, max_context_));
      }
      if (item.sampling != nullptr) RETURN_IF_ERROR(CheckSampling(*item.sampling));
    }
    return absl::OkStatus();
  }

  absl::Span<float> LogitsOf(size_t item) {
    const size_t vocab = static_cast<size_t>(config_.vocab_size);
    return absl::MakeSpan(logits_).subspan(item * vocab, vocab);
  }

  // The next kPassTokens tokens of the step, at most one segment an item. False when all are fed.
  bool NextPass(absl::Span<StepItem> items, std::vector<size_t>* fed,
                std::vector<Segment>* segments) {
    segments->clear();
    size_t room = kPassTokens;
    for (size_t i = 0; i < items.size() && room > 0; ++i) {
      StepItem& item = items[i];
      const size_t at = (*fed)[i], left = item.tokens.size() - at;
      if (left == 0) continue;
      Segment segment;
      segment.kv = static_cast<EngineSequence*>(item.sequence)->kv();
      segment.tokens = item.tokens.subspan(at, room);
      const size_t row = static_cast<size_t>(config_.num_layers * config_.experts_per_token);
      if (item.want_routes) segment.routes = item.routes.data() + at * row;
      if (item.sampling != nullptr && segment.tokens.size() == left)
        segment.logits = LogitsOf(i).data();
      (*fed)[i] += segment.tokens.size();
      room -= segment.tokens.size();
      segments->push_back(segment);
    }
    return !segments->empty();
  }

  void RunPass(const std::vector<Segment>& segments) {
    const int64_t threads = workers_->threads(), count = static_cast<int64_t>(segments.size());
    if (!small_ || threads == 1 || count < threads) {
      model_->Forward(segments, workers_.get(), &workspaces_[0]);
      return;
    }
    int64_t tokens = 0;
    for (const Segment& segment : segments) tokens += static_cast<int64_t>(segment.tokens.size());
    // Consecutive segments with about the same number of tokens for each thread.
    std::vector<int64_t> first = {0};
    int64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t share = tokens * static_cast<int64_t>(first.size()) / threads;
      if (i > first.back() && sum >= share && static_cast<int64_t>(first.size()) < threads)
        first.push_back(i);
      sum += static_cast<int64_t>(segments[static_cast<size_t>(i)].tokens.size());
    }
    first.push_back(count);
    workers_->Run(static_cast<int64_t>(first.size()) - 1, [&](int64_t part) {
      const auto at = static_cast<size_t>(part);
      const absl::Span<const Segment> own = absl::MakeSpan(segments).subspan(
          static_cast<size_t>(first[at]), static_cast<size_t>(first[at + 1] - first[at]));
      model_->Forward(own, nullptr, &workspaces_[at]);
    });
  }

  ModelConfig config_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Checkpoint> checkpoint_;
  ModelWeights weights_;
  std::string digest_;
  int64_t max_context_ = 0;
  bool small_ = false;
  bool reference_ = false;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Workers> workers_;
  std::vector<Workspace> workspaces_;  // [threads]
  std::vector<float> logits_;          // [items, V] of the step
};

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Load(const std::string& directory,
                                                     const EngineOptions& options) {
  return EngineImpl::Load(directory, options);
}

}  // namespace reprise::engine
