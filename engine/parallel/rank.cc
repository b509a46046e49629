#include "engine/parallel/rank.h"

#include <fmt/format.h>

#include <future>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "engine/engine.h"
#include "engine/parallel/frame.h"
#include "engine/parallel/mesh.h"
#include "reprise/rank/v1/rank.pb.h"

namespace reprise::engine {
namespace {

namespace wire = reprise::rank::v1;

constexpr absl::Duration kFirstCall = absl::Minutes(1);
// For the other ranks of a group to call, once the first has said who they are.
constexpr absl::Duration kPeersCall = absl::Minutes(1);

// What the first rank sent cannot be: the ranks are not of one build, or are not in step.
absl::Status OutOfStep(std::string_view what) {
  return absl::InternalError(fmt::format("the first rank and this one are not in step: {}", what));
}

class Session {
 public:
  Session(base::UniqueFd commands, int listener, std::string_view secret)
      : commands_(std::move(commands)), listener_(listener), secret_(secret) {}

  // Until the commands end, which is no error.
  absl::Status Run() {
    wire::Start start;
    RETURN_IF_ERROR(ReceiveMessage(commands_.get(), &start));
    RETURN_IF_ERROR(Meet(start));
    EngineOptions options;
    options.threads = start.threads();
    options.max_context = start.max_context();
    options.numerics = static_cast<Numerics>(start.numerics());
    options.prefix_cache_bytes = start.prefix_cache_bytes();
    options.ranks = mesh_.get();
    auto engine = Engine::Load(start.model_directory(), options);
    if (engine.ok()) engine_ = *std::move(engine);
    const absl::Status told = Answer(engine.status(), engine_ == nullptr ? "" : engine_->digest());
    // It may have failed meanwhile.
    if (absl::IsUnavailable(told)) return absl::OkStatus();
    RETURN_IF_ERROR(told);
    RETURN_IF_ERROR(engine.status());
    base::LogInfo(fmt::format("rank {} of {} runs {}", mesh_->rank(), mesh_->size(),
                              start.model_directory()));
    for (wire::Command command;;) {
      const absl::Status received = ReceiveMessage(commands_.get(), &command);
      if (absl::IsUnavailable(received)) return absl::OkStatus();
      RETURN_IF_ERROR(received);
      RETURN_IF_ERROR(Do(command));
    }
  }

 private:
  using LoadedWeights = absl::StatusOr<std::shared_ptr<const Weights>>;

  absl::Status Meet(const wire::Start& start) {
    const size_t size = static_cast<size_t>(start.addresses_size()), own = start.rank();
    if (size < 2 || own == 0 || own >= size) return OutOfStep("no rank of the group is this one");
    std::vector<base::UniqueFd> peers(size);
    for (size_t met = 0; met < own;) {
      ASSIGN_OR_RETURN(base::UniqueFd fd, Accept(listener_, kPeersCall));
      // Who does not know the secret, or is not of the group, is let go.
      auto role = ShakeHandsAsListener(fd.get(), secret_);
      if (!role.ok() || *role == kCommands || *role > own) continue;
      if (peers[*role - 1].valid()) continue;
      peers[*role - 1] = std::move(fd);
      ++met;
    }
    for (size_t other = own + 1; other < size; ++other) {
      ASSIGN_OR_RETURN(peers[other], Dial(start.addresses(static_cast<int>(other))));
      RETURN_IF_ERROR(ShakeHandsAsCaller(peers[other].get(), secret_, static_cast<Role>(own + 1)));
    }
    mesh_ = std::make_unique<Mesh>(static_cast<int>(own), std::move(peers));
    return absl::OkStatus();
  }

  absl::Status Answer(const absl::Status& done, const std::string& digest) {
    wire::Answer answer;
    answer.set_error(std::string(done.message()));
    answer.set_digest(digest);
    absl::MutexLock lock(&sending_);
    return SendMessage(commands_.get(), answer);
  }

  absl::Status Do(const wire::Command& command) {
    switch (command.kind_case()) {
      case wire::Command::kNewSequence:
        return New(command.new_sequence());
      case wire::Command::kFork: {
        ASSIGN_OR_RETURN(Sequence * sequence, Find(command.fork().sequence()));
        sequences_[command.fork().fork()] = sequence->Fork();
        return absl::OkStatus();
      }
      case wire::Command::kRewind: {
        ASSIGN_OR_RETURN(Sequence * sequence, Find(command.rewind().sequence()));
        return sequence->Rewind(command.rewind().length());
      }
      case wire::Command::kRestore: {
        const wire::RestoreSequence& restored = command.restore();
        ASSIGN_OR_RETURN(const Weights* weights, FindWeights(restored.weights()));
        ASSIGN_OR_RETURN(sequences_[restored.sequence()],
                         engine_->Restore(restored.state(), weights));
        return absl::OkStatus();
      }
      case wire::Command::kDrop:
        sequences_.erase(command.drop().sequence());
        return absl::OkStatus();
      case wire::Command::kStep:
        return Step(command.step());
      case wire::Command::kLogits: {
        const std::vector<int32_t> tokens(command.logits().tokens().begin(),
                                          command.logits().tokens().end());
        return engine_->Logits(tokens).status();
      }
      case wire::Command::kLoadWeights:
        Load(command.load_weights());
        return absl::OkStatus();
      case wire::Command::kDropWeights:
        weights_.erase(command.drop_weights().weights());
        return absl::OkStatus();
      case wire::Command::KIND_NOT_SET:
        break;
    }
    return OutOfStep("it sent a command of another build");
  }

  absl::Status New(const wire::NewSequence& made) {
    ASSIGN_OR_RETURN(const Weights* weights, FindWeights(made.weights()));
    const std::vector<int32_t> tokens(made.tokens().begin(), made.tokens().end());
    std::unique_ptr<Sequence> sequence = engine_->NewSequence(tokens, weights);
    if (sequence->length() != made.reused()) {
      return OutOfStep(fmt::format("a prefix cache has {} tokens there and {} here", made.reused(),
                                   sequence->length()));
    }
    sequences_[made.sequence()] = std::move(sequence);
    return absl::OkStatus();
  }

  absl::Status Step(const wire::Step& step) {
    // The first rank samples: here the logits are only asked for.
    static const SamplingParams kGreedy{.temperature = 0};
    std::vector<std::vector<int32_t>> tokens;
    std::vector<StepItem> items;
    tokens.reserve(static_cast<size_t>(step.items_size()));
    for (const wire::Step::Item& item : step.items()) {
      StepItem& mine = items.emplace_back();
      ASSIGN_OR_RETURN(mine.sequence, Find(item.sequence()));
      ASSIGN_OR_RETURN(mine.weights, FindWeights(item.weights()));
      mine.tokens = tokens.emplace_back(item.tokens().begin(), item.tokens().end());
      if (item.logits()) mine.sampling = &kGreedy;
    }
    return engine_->Step(absl::MakeSpan(items));
  }

  // Beside the steps.
  void Load(const wire::LoadWeights& load) {
    weights_[load.weights()] =
        std::async(std::launch::async, [this, directory = load.directory()]() -> LoadedWeights {
          LoadedWeights loaded = engine_->LoadWeights(directory);
          // A first rank that is gone is met by the commands.
          Answer(loaded.status(), loaded.ok() ? (*loaded)->digest() : "").IgnoreError();
          return loaded;
        }).share();
  }

  absl::StatusOr<Sequence*> Find(uint64_t id) const {
    const auto found = sequences_.find(id);
    if (found == sequences_.end()) return OutOfStep(fmt::format("no sequence {} is here", id));
    return found->second.get();
  }

  // nullptr for 0.
  absl::StatusOr<const Weights*> FindWeights(uint64_t id) const {
    if (id == 0) return nullptr;
    const auto found = weights_.find(id);
    if (found == weights_.end()) return OutOfStep(fmt::format("no weights {} are here", id));
    const LoadedWeights& loaded = found->second.get();
    RETURN_IF_ERROR(loaded.status());
    return loaded->get();
  }

  const base::UniqueFd commands_;
  const int listener_;
  const std::string secret_;
  absl::Mutex sending_;
  std::unique_ptr<Mesh> mesh_;
  std::unique_ptr<Engine> engine_;
  std::map<uint64_t, std::unique_ptr<Sequence>> sequences_;
  std::map<uint64_t, std::shared_future<LoadedWeights>> weights_;
};

}  // namespace

absl::Status ServeRank(int listener, std::string_view secret, bool once) {
  while (true) {
    auto fd = Accept(listener, once ? kFirstCall : absl::InfiniteDuration());
    if (absl::IsDeadlineExceeded(fd.status()))
      return absl::UnavailableError("the first rank did not call");
    RETURN_IF_ERROR(fd.status());
    const auto role = ShakeHandsAsListener(fd->get(), secret);
    if (!role.ok() || *role != kCommands) {
      base::LogWarn(
          fmt::format("a caller was let go: {}", role.ok() ? "it is of a group that ended"
                                                           : std::string(role.status().message())));
      continue;
    }
    const absl::Status ended = Session(*std::move(fd), listener, secret).Run();
    if (once) return ended;
    if (!ended.ok()) base::LogError(std::string(ended.message()));
  }
}

}  // namespace reprise::engine
