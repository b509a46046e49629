#include "rollout/http/harness.h"

#include <algorithm>
#include <tuple>

#include <fmt/format.h>

#include "absl/strings/numbers.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "rollout/identity.h"
#include "rollout/text.h"
#include "rollout/trajectory.h"

namespace reprise::rollout::http {

using replay::TrajectoryState;

struct Harness::Branch {
  std::string id;
  TrajectoryState state;
  bool busy = false;  // a request of it is being answered
};

struct Harness::Trajectory {
  std::shared_ptr<JobRun> run;
  size_t index = 0;
  absl::Mutex mutex;
  std::vector<std::unique_ptr<Branch>> branches ABSL_GUARDED_BY(mutex);

  bool sealed() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    return !branches.empty() && branches[0]->state.sealed.has_value();
  }
  void ShowLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    Summary summary = Summarize(branches[0]->state);
    summary.sealed = branches[0]->state.sealed.has_value();
    run->Update(index, std::move(summary));
  }
};

namespace {

constexpr uint32_t kGroupSizeMax = static_cast<uint32_t>(kMaxGroupSize);

bool IsOpen(const TrajectoryState& state) {
  return !state.exchanges.empty() && !state.exchanges.back().done.has_value();
}

uint64_t VersionAt(const TrajectoryState& state, uint64_t at) {
  for (const replay::VersionSpan& span : state.version_spans) {
    if (at >= span.begin && at < span.end) return span.version;
  }
  return 0;
}

// A version is the same weights for ever: a log that began under other ones of that number is of
// another model.
bool FitsWeights(const TrajectoryState& state, const journal::WeightsRecord& weights) {
  return state.weight_version() < weights.version() || !state.switches.empty() ||
         state.start.engine_digest() == LogEngineDigest(weights.digest());
}

engine::SampledToken TokenAt(const TrajectoryState& state, uint64_t at,
                             const std::vector<int32_t>& stop_ids) {
  engine::SampledToken token;
  token.id = state.tokens[at];
  token.logprob = token.raw_logprob = state.logprobs[at];
  token.stop = std::find(stop_ids.begin(), stop_ids.end(), token.id) != stop_ids.end();
  auto found = state.alternatives.find(at);
  if (found == state.alternatives.end()) return token;
  const journal::TokenAlternatives& other = found->second;
  token.raw_logprob = other.raw_logprob();
  for (int i = 0; i < other.ids_size(); ++i)
    token.top.push_back({other.ids(i), other.logprobs(i), other.raw_logprobs(i)});
  return token;
}

journal::TrajectoryEntry SampledEntry(uint64_t position, const engine::SampledToken& token,
                                      uint64_t weight_version) {
  journal::TrajectoryEntry entry;
  journal::SampledTokens* sampled = entry.mutable_sampled();
  sampled->set_position(position);
  sampled->add_ids(token.id);
  sampled->add_logprobs(token.logprob);
  sampled->set_weight_version(weight_version);
  NoteAllowed(token, sampled);
  if (token.top.empty() && token.raw_logprob == token.logprob) return entry;
  journal::TokenAlternatives* other = sampled->add_alternatives();
  other->set_raw_logprob(token.raw_logprob);
  for (const engine::TokenLogprob& top : token.top) {
    other->add_ids(top.id);
    other->add_logprobs(top.logprob);
    other->add_raw_logprobs(top.raw_logprob);
  }
  return entry;
}

// The prompt as tokens when it goes on where `state` ends; nullopt when it does not.
std::optional<std::vector<int32_t>> Continue(const TrajectoryState& state,
                                             const OpenAiRequest& request,
                                             const engine::Tokenizer& tokenizer) {
  const std::vector<int32_t>& had = state.tokens;
  const std::vector<int32_t>& prompt = request.prompts[0];
  if (had.size() <= prompt.size() && std::equal(had.begin(), had.end(), prompt.begin()))
    return prompt;
  if (request.pieces.empty()) return std::nullopt;
  // The text may be tokenised another way than it was sampled.
  const std::string text = tokenizer.Decode(had);
  if (!engine::JoinPieces(request.pieces).starts_with(text)) return std::nullopt;
  size_t skip = text.size();
  std::vector<engine::PromptPiece> rest;
  for (const engine::PromptPiece& piece : request.pieces) {
    const size_t cut = std::min(skip, piece.text.size());
    skip -= cut;
    if (cut < piece.text.size()) rest.push_back({piece.text.substr(cut), piece.markup});
  }
  std::vector<int32_t> tokens = had;
  const std::vector<int32_t> fresh = tokenizer.Encode(rest);
  tokens.insert(tokens.end(), fresh.begin(), fresh.end());
  return tokens;
}

}  // namespace

// Holds its branch while the request is answered.
class Harness::TurnRecording final : public Recording {
 public:
  TurnRecording(std::shared_ptr<Trajectory> trajectory, Branch* branch)
      : trajectory_(std::move(trajectory)), branch_(branch) {}
  ~TurnRecording() override { Release(); }

  void OnBegun(int64_t cached_tokens) override { cached_tokens_ = cached_tokens; }

  void OnSampled(const engine::SampledToken& token, uint64_t weight_version,
                 const std::string* finish_reason, Guest::Appends* log) override {
    base::FailPoint("exchange.sampled");
    absl::MutexLock lock(&trajectory_->mutex);
    ++trajectory_->run->decoded;
    if (weight_version > branch_->state.weight_version()) {
      journal::TrajectoryEntry entry;
      entry.mutable_switched()->set_weight_version(weight_version);
      Add(std::move(entry), log);
    }
    Add(SampledEntry(branch_->state.tokens.size(), token, weight_version), log);
    ++unwritten_;
    if (finish_reason == nullptr) return;
    journal::TrajectoryEntry done;
    done.mutable_answered()->set_finish_reason(*finish_reason);
    done.mutable_answered()->set_cached_tokens(static_cast<uint64_t>(cached_tokens_));
    Add(std::move(done), log);
    finished_ = true;
  }

  void OnDurable() override {
    if (--unwritten_ > 0 || !finished_) return;
    base::FailPoint("exchange.answered");
    Release();
  }

 private:
  void Add(journal::TrajectoryEntry entry, Guest::Appends* log)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(trajectory_->mutex) {
    const uint64_t index = branch_->state.entries;
    // It follows what this process wrote before it.
    if (!branch_->state.Apply(entry).ok()) return;
    log->push_back({branch_->id, index, std::move(entry)});
  }
  void Release() {
    if (released_) return;
    released_ = true;
    absl::MutexLock lock(&trajectory_->mutex);
    branch_->busy = false;
    trajectory_->ShowLocked();
  }

  const std::shared_ptr<Trajectory> trajectory_;
  Branch* const branch_;
  int unwritten_ = 0;
  int64_t cached_tokens_ = 0;
  bool finished_ = false, released_ = false;
};

absl::StatusOr<std::optional<HarnessCall>> ReadHarnessCall(const web::Request& request) {
  HarnessCall call;
  call.name = request.header("x-reprise-trajectory");
  if (call.name.empty()) return std::optional<HarnessCall>();
  auto take = [&](const char* header, std::string* to) {
    const std::string_view value = request.header(header);
    if (!value.empty()) *to = std::string(value);
  };
  take("x-reprise-job", &call.job);
  call.group = call.name;
  take("x-reprise-group", &call.group);
  take("x-request-id", &call.request_id);
  RETURN_IF_ERROR(base::CheckId(call.name, "X-Reprise-Trajectory", /*allow_slash=*/true));
  RETURN_IF_ERROR(base::CheckId(call.group, "X-Reprise-Group", /*allow_slash=*/true));
  RETURN_IF_ERROR(base::CheckId(call.job, "X-Reprise-Job"));
  if (call.job.size() > kMaxJobIdBytes) {
    return absl::InvalidArgumentError(
        fmt::format("X-Reprise-Job has {} bytes, the most is {}", call.job.size(), kMaxJobIdBytes));
  }
  if (!call.request_id.empty())
    RETURN_IF_ERROR(base::CheckId(call.request_id, "X-Request-ID", /*allow_slash=*/true));
  const std::string size(request.header("x-reprise-group-size"));
  if (!size.empty() && (!absl::SimpleAtoi(size, &call.group_size) || call.group_size < 1 ||
                        call.group_size > kGroupSizeMax)) {
    return absl::InvalidArgumentError(
        fmt::format("X-Reprise-Group-Size: a whole number from 1 to {} is wanted", kGroupSizeMax));
  }
  call.digest = Sha256(fmt::format("{}\n{}", request.path, request.body));
  return call;
}

absl::StatusOr<std::shared_ptr<Harness::Trajectory>> Harness::Load(
    const std::shared_ptr<JobRun>& run, size_t index) {
  absl::MutexLock lock(&mutex_);
  const auto key = std::pair(run->id(), index);
  if (auto found = known_.find(key); found != known_.end()) return found->second;
  if (known_.size() >= kTrajectoriesKept)
    std::erase_if(known_, [](const auto& one) { return one.second.use_count() == 1; });
  auto trajectory = std::make_shared<Trajectory>();
  trajectory->run = run;
  trajectory->index = index;
  absl::MutexLock inner(&trajectory->mutex);
  for (const std::string& id : run->record_ids(index)) {
    auto entries = log_->Read(id);
    if (absl::IsNotFound(entries.status())) continue;
    RETURN_IF_ERROR(entries.status());
    auto branch = std::make_unique<Branch>();
    branch->id = id;
    ASSIGN_OR_RETURN(branch->state, replay::Fold(*entries));
    trajectory->branches.push_back(std::move(branch));
  }
  return known_[key] = trajectory;
}

absl::StatusOr<HarnessTurn> Harness::Begin(const HarnessCall& call, const ServedModel& model,
                                           const OpenAiRequest& request,
                                           const std::string& answer_id) {
  ASSIGN_OR_RETURN(std::shared_ptr<JobRun> run,
                   jobs_->External(call.job, model.directory, call.group_size));
  if (!run->Is(journal::JOB_STATE_RUNNING)) {
    return absl::UnavailableError(
        fmt::format("job {} is {}: resume it", run->id(), StateName(run->state())));
  }
  ASSIGN_OR_RETURN(const size_t index, run->Place(call.group, call.name));
  ASSIGN_OR_RETURN(std::shared_ptr<Trajectory> trajectory, Load(run, index));
  absl::MutexLock lock(&trajectory->mutex);
  for (size_t i = 0; i < trajectory->branches.size() && !call.request_id.empty(); ++i) {
    for (const replay::Exchange& exchange : trajectory->branches[i]->state.exchanges) {
      if (exchange.begun.request_id() == call.request_id)
        return Again(trajectory, call, request, i);
    }
  }
  if (trajectory->sealed()) {
    return absl::FailedPreconditionError(
        fmt::format("trajectory \"{}\" is finished: name another", call.name));
  }
  return New(trajectory, call, model, request, answer_id);
}

absl::StatusOr<HarnessTurn> Harness::Again(const std::shared_ptr<Trajectory>& trajectory,
                                           const HarnessCall& call, const OpenAiRequest& request,
                                           size_t index) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Branch* branch = trajectory->branches[index].get();
  const TrajectoryState& state = branch->state;
  const auto found = std::find_if(
      state.exchanges.begin(), state.exchanges.end(),
      [&](const auto& exchange) { return exchange.begun.request_id() == call.request_id; });
  const journal::ExchangeBegun& begun = found->begun;
  if (begun.request_digest() != call.digest) {
    return absl::FailedPreconditionError(fmt::format(
        "divergence: X-Request-ID \"{}\" came before with another body", call.request_id));
  }
  const bool open = !found->done.has_value();
  if (open && branch->busy) {
    return absl::AbortedError(fmt::format(
        "the request \"{}\" is being answered on another connection: try again", call.request_id));
  }
  if (open && state.sealed.has_value()) {
    return absl::FailedPreconditionError(
        fmt::format("trajectory \"{}\" was finished before this request was answered", call.name));
  }
  HarnessTurn turn;
  turn.trajectory_id = branch->id;
  turn.prompt.assign(state.tokens.begin(),
                     state.tokens.begin() + static_cast<ptrdiff_t>(begun.begin()));
  turn.seed = begun.seed();
  turn.answer_id = begun.answer_id();
  turn.created_us = begun.created_us();
  turn.done = !open;
  if (!open) turn.cached_tokens = static_cast<int64_t>(found->done->cached_tokens());
  turn.replayed = true;
  for (uint64_t at = begun.begin(); at < found->end; ++at)
    turn.recorded.push_back(
        {TokenAt(state, at, request.spec.sampling.stop_ids), VersionAt(state, at)});
  if (!open) return turn;
  // Its tokens may still be on their way to the disk: this comes after them.
  journal::TrajectoryEntry entry;
  journal::Resumed* resumed = entry.mutable_resumed();
  resumed->set_at_token(state.tokens.size());
  resumed->set_cause("retry");
  resumed->set_prefill_tokens(state.tokens.size());
  resumed->set_resumed_us(base::WallMicros());
  RETURN_IF_ERROR(log_->AppendAll({{branch->id, state.entries, entry}}));
  RETURN_IF_ERROR(branch->state.Apply(entry));
  branch->busy = true;
  turn.recording = std::make_shared<TurnRecording>(trajectory, branch);
  return turn;
}

absl::StatusOr<HarnessTurn> Harness::New(const std::shared_ptr<Trajectory>& trajectory,
                                         const HarnessCall& call, const ServedModel& model,
                                         const OpenAiRequest& request, const std::string& answer_id)
    ABSL_NO_THREAD_SAFETY_ANALYSIS {
  HarnessTurn turn;
  Branch* branch = nullptr;
  const journal::WeightsRecord weights = model.scheduler->weights().current();
  for (const auto& each : trajectory->branches) {
    const TrajectoryState& state = each->state;
    if (each->busy || IsOpen(state) || !FitsWeights(state, weights)) continue;
    if (branch != nullptr && branch->state.tokens.size() >= state.tokens.size()) continue;
    auto prompt = Continue(state, request, model.tokenizer());
    if (!prompt.has_value()) continue;
    turn.prompt = *std::move(prompt);
    branch = each.get();
  }
  std::vector<journal::TrajectoryEntry> entries;
  auto fresh = std::make_unique<Branch>();
  if (branch == nullptr) {
    if (trajectory->branches.size() >= kBranchesMax) {
      return absl::ResourceExhaustedError(fmt::format(
          "trajectory \"{}\" has {} branches, the most there can be", call.name, kBranchesMax));
    }
    uint32_t number = 0;
    fresh->id = trajectory->run->trajectory_id(trajectory->index);
    if (!trajectory->branches.empty())
      std::tie(fresh->id, number) = trajectory->run->AddBranch(trajectory->index);
    turn.prompt = request.prompts[0];
    entries.emplace_back();
    journal::TrajectoryStart* start = entries.back().mutable_start();
    const uint32_t size = trajectory->run->group_size();
    start->set_trajectory_id(fresh->id);
    start->set_job_id(call.job);
    start->set_group(static_cast<uint32_t>(trajectory->index / size));
    start->set_sample(static_cast<uint32_t>(trajectory->index % size));
    start->set_task_id(call.group);
    start->set_seed(request.seed.value_or(TrajectorySeed(0, fresh->id, 0)));
    start->mutable_prompt_ids()->Add(turn.prompt.begin(), turn.prompt.end());
    start->set_weight_version(weights.version());
    start->set_engine_digest(LogEngineDigest(weights.digest()));
    start->set_started_us(base::WallMicros());
    start->mutable_external()->set_group(call.group);
    start->mutable_external()->set_name(call.name);
    start->mutable_external()->set_branch(number);
    branch = fresh.get();
  } else if (turn.prompt.size() > branch->state.tokens.size()) {
    entries.emplace_back();
    journal::FedTokens* fed = entries.back().mutable_fed();
    fed->set_position(branch->state.tokens.size());
    fed->mutable_ids()->Add(
        turn.prompt.begin() + static_cast<ptrdiff_t>(branch->state.tokens.size()),
        turn.prompt.end());
  }
  turn.trajectory_id = branch->id;
  turn.seed = request.seed.value_or(TrajectorySeed(0, branch->id, 0));
  turn.answer_id = answer_id;
  turn.created_us = base::WallMicros();
  entries.emplace_back();
  journal::ExchangeBegun* begun = entries.back().mutable_exchange();
  begun->set_begin(turn.prompt.size());
  begun->set_request_id(call.request_id);
  begun->set_request_digest(call.digest);
  begun->set_answer_id(answer_id);
  begun->set_created_us(turn.created_us);
  begun->set_seed(turn.seed);
  begun->set_temperature(request.spec.sampling.temperature);
  begun->set_top_p(request.spec.sampling.top_p);
  Guest::Appends appends;
  for (size_t i = 0; i < entries.size(); ++i)
    appends.push_back({branch->id, branch->state.entries + i, entries[i]});
  RETURN_IF_ERROR(log_->AppendAll(std::move(appends)));
  for (const auto& entry : entries) RETURN_IF_ERROR(branch->state.Apply(entry));
  if (fresh.get() == branch) trajectory->branches.push_back(std::move(fresh));
  branch->busy = true;
  trajectory->ShowLocked();
  turn.recording = std::make_shared<TurnRecording>(trajectory, branch);
  return turn;
}

absl::StatusOr<std::vector<std::string>> Harness::Finish(const std::string& job,
                                                         const std::string& name,
                                                         const Ending& ending) {
  ASSIGN_OR_RETURN(std::shared_ptr<JobRun> run, jobs_->Find(job));
  const std::optional<size_t> index = run->external() ? run->Find(name) : std::nullopt;
  if (!index.has_value()) {
    return absl::NotFoundError(
        fmt::format("no request named trajectory \"{}\" of job {}", name, job));
  }
  ASSIGN_OR_RETURN(std::shared_ptr<Trajectory> trajectory, Load(run, *index));
  absl::MutexLock lock(&trajectory->mutex);
  if (trajectory->branches.empty())
    return absl::NotFoundError(fmt::format("trajectory \"{}\" has no request yet", name));
  journal::RewardDone reward;
  reward.set_has_value(ending.reward.has_value());
  reward.set_value(ending.reward.value_or(0));
  for (const auto& [key, value] : ending.components) (*reward.mutable_components())[key] = value;
  if (!ending.reward.has_value()) reward.set_failure("the agent gave no reward");
  std::vector<std::string> ids;
  Guest::Appends appends;
  for (const auto& branch : trajectory->branches) {
    ids.push_back(branch->id);
    if (branch->busy) {
      return absl::AbortedError(
          fmt::format("a request of trajectory \"{}\" is being answered: try again", name));
    }
    TrajectoryState& state = branch->state;
    // An answer that never came whole is nobody's: the record is kept, but trains nothing.
    const bool open = IsOpen(state);
    const std::string status = open ? "aborted" : ending.status;
    if (state.sealed.has_value()) {
      const journal::RewardDone& had = *state.reward;
      if (had.has_value() == reward.has_value() && had.value() == reward.value() &&
          state.sealed->status() == status)
        continue;
      return absl::FailedPreconditionError(
          fmt::format("trajectory \"{}\" was finished with another reward or status", name));
    }
    journal::TrajectoryEntry rewarded, entry;
    *rewarded.mutable_reward() = reward;
    std::string kind = ending.failure_kind, failure = ending.failure;
    if (kind.empty() && !ending.reward.has_value()) {
      kind = "grader";
      failure = reward.failure();
    }
    const std::string& last =
        state.exchanges.back().done.has_value() ? state.exchanges.back().done->finish_reason() : "";
    entry = SealEntry(status, status == "completed" ? "stop" : last, kind, failure);
    journal::Sealed* sealed = entry.mutable_sealed();
    sealed->set_sealed_us(base::WallMicros());
    sealed->mutable_timing()->set_total_us(sealed->sealed_us() - state.start.started_us());
    sealed->set_digest(replay::TrajectoryDigest(state));
    appends.push_back({branch->id, state.entries, std::move(rewarded)});
    appends.push_back({branch->id, state.entries + 1, std::move(entry)});
  }
  if (appends.empty()) return ids;
  RETURN_IF_ERROR(log_->AppendAll(appends));
  size_t next = 0;
  for (const auto& branch : trajectory->branches) {
    for (; next < appends.size() && appends[next].trajectory_id == branch->id; ++next)
      RETURN_IF_ERROR(branch->state.Apply(appends[next].entry));
  }
  trajectory->ShowLocked();
  return ids;
}

}  // namespace reprise::rollout::http
