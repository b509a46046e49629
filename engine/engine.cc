#include "engine/engine.h"

#include <algorithm>
#include <set>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "engine/communicator.h"
#include "engine/digest.h"
#include "engine/engine_impl.h"
#include "engine/sampler.h"

namespace reprise::engine {
namespace {

constexpr int kThreadsMax = 1024;
constexpr int kSamplesMax = 2;
constexpr size_t kGrammarsKept = 16;  // whose masks are kept: up to 8 MiB each (129,280 tokens)
// Tokens of one pass of Logits. Bounds the memory of a pass.
constexpr int64_t kLogitsPassTokens = 256;
// Weights up to this size stay in cache, so that every thread may run whole sequences by itself.
// Bytes.
constexpr uint64_t kSmallModelBytes = 64 << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> EngineImpl::Load(const std::string& directory,
                                                         const EngineOptions& options) {
  auto engine = std::make_unique<EngineImpl>();
  ASSIGN_OR_RETURN(engine->config_, LoadConfig(directory));
  ASSIGN_OR_RETURN(engine->tokenizer_, Tokenizer::Load(directory + "/tokenizer.json"));
  ASSIGN_OR_RETURN(std::shared_ptr<LoadedWeights> own, engine->OpenWeights(directory));
  RETURN_IF_ERROR(engine->CheckOptions(options, *own->checkpoint));
  if (engine->tokenizer_->vocab_size() > engine->config_.vocab_size) {
    return absl::InvalidArgumentError(
        fmt::format("{}: tokenizer.json has {} tokens and config.json vocab_size {}", directory,
                    engine->tokenizer_->vocab_size(), engine->config_.vocab_size));
  }
  RETURN_IF_ERROR(engine->Start(options, *own->checkpoint));
  RETURN_IF_ERROR(engine->BindTensors(own.get()));
  engine->own_ = std::move(own);
  return engine;
}

absl::StatusOr<std::shared_ptr<const Weights>> EngineImpl::LoadWeights(
    const std::string& directory) const {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadConfig(directory));
  if (config != config_) {
    return absl::FailedPreconditionError(
        fmt::format("{}/config.json describes another architecture than the loaded {}: only its "
                    "tensors may change",
                    directory, own_->directory()));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                   Tokenizer::Load(directory + "/tokenizer.json"));
  if (tokenizer->digest() != tokenizer_->digest()) {
    return absl::FailedPreconditionError(
        fmt::format("{}/tokenizer.json is another tokenizer than that of the loaded {}: only the "
                    "tensors may change",
                    directory, own_->directory()));
  }
  ASSIGN_OR_RETURN(std::shared_ptr<LoadedWeights> weights, OpenWeights(directory));
  if (speculate_ && weights->checkpoint->MtpBlocks(config_) == 0) {
    return absl::FailedPreconditionError(
        fmt::format("{}: no MTP block in it, and the loaded {} guesses with its own", directory,
                    own_->directory()));
  }
  RETURN_IF_ERROR(BindTensors(weights.get()));
  return weights;
}

absl::StatusOr<std::shared_ptr<LoadedWeights>> EngineImpl::OpenWeights(
    const std::string& directory) const {
  auto weights = std::make_shared<LoadedWeights>();
  weights->engine = this;
  ASSIGN_OR_RETURN(weights->checkpoint, Checkpoint::Open(directory));
  RETURN_IF_ERROR(weights->checkpoint->CheckAgainst(config_));
  return weights;
}

absl::Status EngineImpl::BindTensors(LoadedWeights* weights) const {
  weights->checkpoint->PrefetchSamples();
  ASSIGN_OR_RETURN(weights->tensors, BindWeights(*weights->checkpoint, config_));
  ASSIGN_OR_RETURN(weights->digest_text, CheckpointDigest(*weights->checkpoint, reference_));
  weights->cache = std::make_unique<PrefixCache>(&model_->layout(), prefix_cache_bytes_);
  return absl::OkStatus();
}

absl::Status EngineImpl::CheckOptions(const EngineOptions& options, const Checkpoint& checkpoint) {
  if (options.threads < 0 || options.threads > kThreadsMax) {
    return absl::InvalidArgumentError(fmt::format(
        "engine threads: {}; possible: 0 (one a core) to {}", options.threads, kThreadsMax));
  }
  if (options.max_context < 0 || options.max_context > config_.max_context) {
    return absl::InvalidArgumentError(
        fmt::format("engine context: {}; possible: 0 (the model's own) to {}", options.max_context,
                    config_.max_context));
  }
  if (options.prefix_cache_bytes < 0) {
    return absl::InvalidArgumentError(fmt::format(
        "engine prefix cache: {} bytes; possible: 0 (none) or more", options.prefix_cache_bytes));
  }
  if (options.speculate && checkpoint.MtpBlocks(config_) == 0) {
    return absl::FailedPreconditionError(
        fmt::format("{}: no MTP block in it, so nothing can be guessed; load it without speculate",
                    checkpoint.directory()));
  }
  if (options.speculate && !options.prefix_disk.directory.empty() &&
      options.prefix_disk.windows == PrefixWindows::kZero) {
    return absl::InvalidArgumentError(
        "a prefix cache on disk without windows does not serve speculation: choose full or "
        "periodic");
  }
  if (options.ranks != nullptr && (options.speculate || !options.prefix_disk.directory.empty())) {
    return absl::InvalidArgumentError(fmt::format(
        "a model that {} ranks run has no {} yet: leave it out, or run one rank",
        options.ranks->size(), options.speculate ? "speculation" : "prefix cache on disk"));
  }
  reference_ = options.numerics == Numerics::kReference ||
               (options.numerics == Numerics::kAuto && checkpoint.quantised());
  if (reference_ && (config_.index_dim & (config_.index_dim - 1)) != 0) {
    return absl::InvalidArgumentError(fmt::format(
        "{}: index_head_dim {} is no power of two, which reference numerics need; load it with "
        "numerics = float",
        checkpoint.directory(), config_.index_dim));
  }
  return absl::OkStatus();
}

absl::Status EngineImpl::Start(const EngineOptions& options, const Checkpoint& checkpoint) {
  max_context_ = options.max_context == 0 ? config_.max_context : options.max_context;
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  workers_ = std::make_unique<Workers>(options.threads == 0 ? cores : options.threads);
  workspaces_.resize(static_cast<size_t>(workers_->threads()));
  ranks_ = options.ranks;
  small_ = checkpoint.bytes() <= kSmallModelBytes && ranks_ == nullptr;
  speculate_ = options.speculate;
  prefix_cache_bytes_ = options.prefix_cache_bytes;
  model_ = std::make_unique<Model>(&config_, reference_, speculate_, ranks_);
  if (options.prefix_disk.directory.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(disk_, PrefixDisk::Open(options.prefix_disk, &model_->layout()));
  return absl::OkStatus();
}

int64_t EngineImpl::RecomputedTokens() const {
  // A layer's inputs are right once those of the layer below were for a whole window.
  const KvLayout& layout = model_->layout();
  int64_t kept = layout.window_rows;
  for (const KvLayout::Layer& layer : layout.layers) kept = std::max(kept, layer.tail_rows);
  return config_.num_layers * (config_.window - 1) + kept;
}

std::optional<KvState> EngineImpl::FromDisk(absl::Span<const int32_t> tokens, int64_t have,
                                            const LoadedWeights& weights) {
  const PrefixDisk::Known known = disk_->Find(weights.digest_text, tokens);
  const bool zero = known.entries - RecomputedTokens() > std::max(have, known.state) &&
                    !speculate_ && known.entries <= max_context_;
  const int64_t length = zero ? known.entries : known.state;
  if (length <= have || length > max_context_) return std::nullopt;
  const absl::Span<const int32_t> prefix = tokens.subspan(0, static_cast<size_t>(length));
  std::optional<KvState> state = disk_->Read(weights.digest_text, prefix, !zero);
  if (!state.has_value()) return std::nullopt;
  stats_.prefix_disk_tokens += length - (zero ? RecomputedTokens() : 0);
  if (!zero) return state;
  state->KnowEntries(length);
  int64_t at = length - RecomputedTokens();
  state->set_length(at);
  while (at < length) {
    Segment segment;
    segment.kv = &*state;
    segment.start = at;
    segment.tokens = prefix.subspan(static_cast<size_t>(at), kLogitsPassTokens);
    at += static_cast<int64_t>(segment.tokens.size());
    stats_.computed_tokens += static_cast<int64_t>(segment.tokens.size());
    model_->Forward(weights.tensors, {&segment, 1}, workers_.get(), &workspaces_[0]);
  }
  state->KnowEntries(0);
  return state;
}

std::unique_ptr<Sequence> EngineImpl::NewSequence(absl::Span<const int32_t> tokens,
                                                  const Weights* weights) {
  auto sequence = std::make_unique<EngineSequence>(&model_->layout());
  if (tokens.size() < 2) return sequence;
  const LoadedWeights* own = Of(weights);
  const absl::Span<const int32_t> known = tokens.subspan(0, tokens.size() - 1);
  const auto adopt = [&](const KvState& state) {
    const auto prefix = tokens.subspan(0, static_cast<size_t>(state.length()));
    sequence->Adopt(prefix, state, own->digest_text);
    stats_.reused_tokens += state.length();
    return prefix;
  };
  const KvState* state = own->cache->Find(known);
  if (state != nullptr && state->length() > max_context_) state = nullptr;
  if (disk_ != nullptr) {
    const auto below = FromDisk(known, state == nullptr ? 0 : state->length(), *own);
    if (below.has_value()) {
      own->cache->Insert(adopt(*below), *below);
      return sequence;
    }
  }
  if (state != nullptr) adopt(*state);
  return sequence;
}

absl::StatusOr<std::unique_ptr<Sequence>> EngineImpl::Restore(std::string_view bytes,
                                                              const Weights* weights) {
  auto sequence = std::make_unique<EngineSequence>(&model_->layout());
  RETURN_IF_ERROR(sequence->Load(bytes, Of(weights)->digest_text));
  return sequence;
}

absl::StatusOr<std::shared_ptr<TokenMasks>> EngineImpl::MasksFor(
    std::shared_ptr<const AnswerGrammar> grammar) const {
  absl::MutexLock lock(&masks_mutex_);
  for (auto it = masks_.begin(); it != masks_.end(); ++it) {
    if ((*it)->grammar().key() != grammar->key()) continue;
    masks_.splice(masks_.begin(), masks_, it);
    return masks_.front();
  }
  if (trie_ == nullptr) {
    ASSIGN_OR_RETURN(trie_, TokenTrie::Make(*tokenizer_, vocab_size()));
  }
  masks_.push_front(std::make_shared<TokenMasks>(std::move(grammar), trie_));
  if (masks_.size() > kGrammarsKept) masks_.pop_back();
  return masks_.front();
}

absl::StatusOr<std::vector<float>> EngineImpl::Logits(absl::Span<const int32_t> tokens) {
  EngineSequence sequence(&model_->layout());
  StepItem item;
  item.sequence = &sequence;
  item.tokens = tokens;
  RETURN_IF_ERROR(CheckStep(absl::MakeSpan(&item, 1)));
  std::vector<float> logits(tokens.size() * static_cast<size_t>(config_.vocab_size));
  for (size_t at = 0; at < tokens.size(); at += kLogitsPassTokens) {
    Segment segment;
    segment.kv = &sequence.kv;
    segment.start = static_cast<int64_t>(at);
    segment.tokens = tokens.subspan(at, kLogitsPassTokens);
    segment.logits = logits.data() + at * static_cast<size_t>(config_.vocab_size);
    segment.logit_rows = static_cast<int64_t>(segment.tokens.size());
    model_->Forward(own_->tensors, {&segment, 1}, workers_.get(), &workspaces_[0]);
  }
  if (ranks_ != nullptr) RETURN_IF_ERROR(ranks_->status());
  return logits;
}

EngineStats EngineImpl::stats() const {
  EngineStats stats = stats_;
  stats.kv_bytes = model_->layout().bytes_in_use;
  stats.prefix_cache_bytes = own_->cache->bytes();
  if (disk_ != nullptr) stats.prefix_disk_bytes = disk_->bytes();
  return stats;
}

absl::Status EngineImpl::CheckStep(absl::Span<const StepItem> items) const {
  std::set<const Sequence*> seen;
  for (const StepItem& item : items) {
    const auto* sequence = dynamic_cast<const EngineSequence*>(item.sequence);
    if (sequence == nullptr || &sequence->kv.layout() != &model_->layout()) {
      return absl::InvalidArgumentError("a step names a sequence that this engine did not make");
    }
    if (item.weights != nullptr) {
      const auto* weights = dynamic_cast<const LoadedWeights*>(item.weights);
      if (weights == nullptr || weights->engine != this)
        return absl::InvalidArgumentError("a step names weights that this engine did not load");
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
    if (item.max_samples < 1 || item.max_samples > kSamplesMax) {
      return absl::InvalidArgumentError(fmt::format("a step samples {} tokens; possible: 1 to {}",
                                                    item.max_samples, kSamplesMax));
    }
    if (item.sampling != nullptr)
      RETURN_IF_ERROR(CheckSampling(*item.sampling, config_.vocab_size));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Load(const std::string& directory,
                                                     const EngineOptions& options) {
  return EngineImpl::Load(directory, options);
}

}  // namespace reprise::engine
