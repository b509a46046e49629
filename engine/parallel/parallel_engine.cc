#include "engine/parallel/parallel_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "base/status_macros.h"
#include "engine/parallel/rank_group.h"

namespace reprise::engine {
namespace {

class ParallelEngine;

// Weights on every rank, by number.
class ParallelWeights final : public Weights {
 public:
  ParallelWeights(std::shared_ptr<RankGroup> group, std::shared_ptr<const Weights> own, uint64_t id)
      : group_(std::move(group)), own_(std::move(own)), id_(id) {}
  ~ParallelWeights() override {
    if (id_ == 0) return;
    rank_wire::Command command;
    command.mutable_drop_weights()->set_weights(id_);
    // Lost ranks have dropped all.
    group_->Tell(command).IgnoreError();
  }
  const std::string& directory() const override { return own_->directory(); }
  const std::string& digest() const override { return own_->digest(); }
  const Weights* own() const { return own_.get(); }
  uint64_t id() const { return id_; }

 private:
  const std::shared_ptr<RankGroup> group_;
  const std::shared_ptr<const Weights> own_;  // of this rank
  const uint64_t id_;
};

// The number and this rank's part of weights that a caller gave; those it loaded with for nullptr.
uint64_t IdOf(const Weights* weights) {
  return weights == nullptr ? 0 : static_cast<const ParallelWeights*>(weights)->id();
}
const Weights* OwnOf(const Weights* weights) {
  return weights == nullptr ? nullptr : static_cast<const ParallelWeights*>(weights)->own();
}

// A sequence on every rank, by number.
class ParallelSequence final : public Sequence {
 public:
  ParallelSequence(std::shared_ptr<RankGroup> group, std::atomic<uint64_t>* next,
                   std::unique_ptr<Sequence> own, uint64_t id)
      : group_(std::move(group)), next_(next), own_(std::move(own)), id_(id) {}
  ~ParallelSequence() override {
    rank_wire::Command command;
    command.mutable_drop()->set_sequence(id_);
    group_->Tell(command).IgnoreError();
  }
  int64_t length() const override { return own_->length(); }
  int64_t memory_bytes() const override { return own_->memory_bytes(); }
  absl::Span<const int32_t> tokens() const override { return own_->tokens(); }
  absl::Span<const KvOrigin> origins() const override { return own_->origins(); }
  std::string Save() const override { return own_->Save(); }
  std::unique_ptr<Sequence> Fork() const override {
    rank_wire::Command command;
    const uint64_t id = ++*next_;
    command.mutable_fork()->set_sequence(id_);
    command.mutable_fork()->set_fork(id);
    // A lost rank is met by the next step.
    group_->Tell(command).IgnoreError();
    return std::make_unique<ParallelSequence>(group_, next_, own_->Fork(), id);
  }
  absl::Status Rewind(int64_t length) override {
    RETURN_IF_ERROR(own_->Rewind(length));
    rank_wire::Command command;
    command.mutable_rewind()->set_sequence(id_);
    command.mutable_rewind()->set_length(length);
    return group_->Tell(command);
  }
  Sequence* own() const { return own_.get(); }
  uint64_t id() const { return id_; }

 private:
  const std::shared_ptr<RankGroup> group_;
  std::atomic<uint64_t>* const next_;  // numbers of sequences
  const std::unique_ptr<Sequence> own_;
  const uint64_t id_;
};

class ParallelEngine final : public Engine {
 public:
  ParallelEngine(std::shared_ptr<RankGroup> group, std::unique_ptr<Engine> own)
      : group_(std::move(group)),
        own_(std::move(own)),
        weights_(std::make_shared<ParallelWeights>(group_, own_->weights(), 0)) {}

  absl::StatusOr<std::shared_ptr<const Weights>> LoadWeights(
      const std::string& directory) const override {
    absl::MutexLock lock(&loading_);
    RETURN_IF_ERROR(group_->status());
    const uint64_t id = ++weights_made_;
    rank_wire::Command command;
    command.mutable_load_weights()->set_weights(id);
    command.mutable_load_weights()->set_directory(directory);
    RETURN_IF_ERROR(group_->Tell(command));
    auto own = own_->LoadWeights(directory);
    const absl::Status others = group_->ReceiveLoaded(own.ok() ? (*own)->digest() : "");
    if (!own.ok() || !others.ok()) {
      rank_wire::Command drop;
      drop.mutable_drop_weights()->set_weights(id);
      RETURN_IF_ERROR(group_->Tell(drop));
      return own.ok() ? others : own.status();
    }
    return std::make_shared<ParallelWeights>(group_, *std::move(own), id);
  }
  std::shared_ptr<const Weights> weights() const override { return weights_; }

  std::unique_ptr<Sequence> NewSequence(absl::Span<const int32_t> tokens,
                                        const Weights* weights) override {
    std::unique_ptr<Sequence> own = own_->NewSequence(tokens, OwnOf(weights));
    rank_wire::Command command;
    rank_wire::NewSequence& made = *command.mutable_new_sequence();
    made.set_sequence(++sequences_made_);
    made.set_weights(IdOf(weights));
    made.mutable_tokens()->Add(tokens.begin(), tokens.end());
    made.set_reused(own->length());
    // A lost rank is met by the next step.
    group_->Tell(command).IgnoreError();
    return Wrap(std::move(own), made.sequence());
  }

  absl::StatusOr<std::unique_ptr<Sequence>> Restore(std::string_view bytes,
                                                    const Weights* weights) override {
    ASSIGN_OR_RETURN(std::unique_ptr<Sequence> own, own_->Restore(bytes, OwnOf(weights)));
    rank_wire::Command command;
    rank_wire::RestoreSequence& restored = *command.mutable_restore();
    restored.set_sequence(++sequences_made_);
    restored.set_weights(IdOf(weights));
    restored.set_state(std::string(bytes));
    RETURN_IF_ERROR(group_->Tell(command));
    return Wrap(std::move(own), restored.sequence());
  }

  absl::Status Step(absl::Span<StepItem> items) override {
    RETURN_IF_ERROR(Lost(group_->status()));
    std::vector<StepItem> own;
    rank_wire::Command command;
    own.reserve(items.size());
    for (const StepItem& item : items) {
      const auto* sequence = dynamic_cast<const ParallelSequence*>(item.sequence);
      if (sequence == nullptr)
        return absl::InvalidArgumentError("a step names a sequence that this engine did not make");
      if (item.weights != nullptr && dynamic_cast<const ParallelWeights*>(item.weights) == nullptr)
        return absl::InvalidArgumentError("a step names weights that this engine did not load");
      StepItem& mine = own.emplace_back(item);
      mine.sequence = sequence->own();
      mine.weights = OwnOf(item.weights);
      rank_wire::Step::Item& theirs = *command.mutable_step()->add_items();
      theirs.set_sequence(sequence->id());
      theirs.mutable_tokens()->Add(item.tokens.begin(), item.tokens.end());
      theirs.set_weights(IdOf(item.weights));
      theirs.set_logits(item.sampling != nullptr);
    }
    RETURN_IF_ERROR(own_->CheckStep(absl::MakeSpan(own)));
    RETURN_IF_ERROR(Lost(group_->Tell(command)));
    RETURN_IF_ERROR(Lost(own_->Step(absl::MakeSpan(own))));
    for (size_t i = 0; i < items.size(); ++i) {
      own[i].sequence = items[i].sequence;
      own[i].weights = items[i].weights;
      items[i] = std::move(own[i]);
    }
    return absl::OkStatus();
  }
  absl::Status CheckStep(absl::Span<const StepItem> items) const override {
    return own_->CheckStep(items);
  }

  absl::StatusOr<std::shared_ptr<TokenMasks>> MasksFor(
      std::shared_ptr<const AnswerGrammar> grammar) const override {
    return own_->MasksFor(std::move(grammar));
  }

  absl::StatusOr<std::vector<float>> Logits(absl::Span<const int32_t> tokens) override {
    RETURN_IF_ERROR(group_->status());
    auto probe = own_->NewSequence();
    StepItem item;
    item.sequence = probe.get();
    item.tokens = tokens;
    RETURN_IF_ERROR(own_->CheckStep(absl::MakeSpan(&item, 1)));
    rank_wire::Command command;
    command.mutable_logits()->mutable_tokens()->Add(tokens.begin(), tokens.end());
    RETURN_IF_ERROR(group_->Tell(command));
    return own_->Logits(tokens);
  }

  const ModelConfig& config() const override { return own_->config(); }
  const Tokenizer& tokenizer() const override { return own_->tokenizer(); }
  EngineStats stats() const override { return own_->stats(); }
  int32_t vocab_size() const override { return own_->vocab_size(); }
  int32_t eos_id() const override { return own_->eos_id(); }
  int64_t max_context() const override { return own_->max_context(); }
  int64_t KvBytes(int64_t tokens) const override { return own_->KvBytes(tokens); }
  Numerics numerics() const override { return own_->numerics(); }
  const std::string& digest() const override { return own_->digest(); }

 private:
  // With what to do about it.
  static absl::Status Lost(const absl::Status& status) {
    if (!absl::IsUnavailable(status)) return status;
    return absl::UnavailableError(
        fmt::format("{}; this process has to be started again, and unfinished work goes on then",
                    std::string(status.message())));
  }
  std::unique_ptr<Sequence> Wrap(std::unique_ptr<Sequence> own, uint64_t id) {
    return std::make_unique<ParallelSequence>(group_, &sequences_made_, std::move(own), id);
  }

  const std::shared_ptr<RankGroup> group_;
  const std::unique_ptr<Engine> own_;  // of this rank
  const std::shared_ptr<const ParallelWeights> weights_;
  std::atomic<uint64_t> sequences_made_{0};
  mutable absl::Mutex loading_;  // one LoadWeights at a time: answers come in order
  mutable uint64_t weights_made_ ABSL_GUARDED_BY(loading_) = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> LoadParallel(const std::string& directory,
                                                     const EngineOptions& options,
                                                     const ParallelOptions& parallel) {
  if (parallel.size() < 1 || parallel.size() > kRanksMax) {
    return absl::InvalidArgumentError(
        fmt::format("{} ranks; possible: 1 to {}", parallel.size(), kRanksMax));
  }
  if (parallel.size() == 1) return Engine::Load(directory, options);
  EngineOptions of_rank = options;
  if (options.threads == 0 && parallel.others.empty()) {
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    of_rank.threads = std::max(1, cores / parallel.size());
  }
  ASSIGN_OR_RETURN(std::shared_ptr<RankGroup> group, RankGroup::Form(directory, of_rank, parallel));
  of_rank.ranks = group->communicator();
  ASSIGN_OR_RETURN(std::unique_ptr<Engine> own, Engine::Load(directory, of_rank));
  RETURN_IF_ERROR(group->ReceiveLoaded(own->digest()));
  return std::make_unique<ParallelEngine>(std::move(group), std::move(own));
}

}  // namespace reprise::engine
