#include "replay/trajectory_state.h"

#include <fmt/format.h>

#include <numeric>

#include "base/status_macros.h"

namespace reprise::replay {
namespace {

absl::Status Bad(const TrajectoryState& state, std::string_view what) {
  return absl::DataLossError(fmt::format("log of trajectory \"{}\", entry {}: {}",
                                         state.start.trajectory_id(), state.entries, what));
}

absl::Status ApplyStart(TrajectoryState* state, const journal::TrajectoryStart& start) {
  if (state->entries != 0) return Bad(*state, "a second start");
  state->start = start;
  state->kv_spans.push_back({start.weight_version(), 0});
  state->tokens.assign(start.prompt_ids().begin(), start.prompt_ids().end());
  state->loss_mask.assign(state->tokens.size(), 0);
  state->logprobs.assign(state->tokens.size(), 0.0f);
  Segment prompt;
  prompt.end = state->tokens.size();
  state->segments.push_back(std::move(prompt));
  return absl::OkStatus();
}

absl::Status ApplyAllowed(TrajectoryState* state, const journal::SampledTokens& sampled) {
  if (sampled.allowed_counts_size() == 0 && sampled.allowed_logprobs_size() == 0)
    return absl::OkStatus();
  if (sampled.allowed_counts_size() != sampled.ids_size() ||
      sampled.allowed_logprobs_size() != sampled.ids_size())
    return Bad(*state, "what a mask left is not said of every token");
  state->allowed_counts.resize(sampled.position(), 0);
  state->allowed_counts.insert(state->allowed_counts.end(), sampled.allowed_counts().begin(),
                               sampled.allowed_counts().end());
  state->allowed_logprobs.resize(sampled.position(), 0);
  state->allowed_logprobs.insert(state->allowed_logprobs.end(), sampled.allowed_logprobs().begin(),
                                 sampled.allowed_logprobs().end());
  return absl::OkStatus();
}

absl::Status ApplySampled(TrajectoryState* state, const journal::SampledTokens& sampled) {
  const uint64_t begin = state->tokens.size();
  if (sampled.position() != begin) {
    return Bad(*state, fmt::format("sampled tokens at {} do not follow {} tokens",
                                   sampled.position(), begin));
  }
  if (sampled.ids_size() == 0 || sampled.ids_size() != sampled.logprobs_size()) {
    return Bad(*state, fmt::format("{} sampled tokens with {} log-probabilities",
                                   sampled.ids_size(), sampled.logprobs_size()));
  }
  RETURN_IF_ERROR(ApplyAllowed(state, sampled));
  const uint64_t end = begin + static_cast<uint64_t>(sampled.ids_size());
  state->tokens.insert(state->tokens.end(), sampled.ids().begin(), sampled.ids().end());
  state->loss_mask.resize(end, 1);
  state->logprobs.insert(state->logprobs.end(), sampled.logprobs().begin(),
                         sampled.logprobs().end());
  state->routed_experts.append(sampled.routed_experts());

  if (sampled.kept_counts_size() > 0) {
    const uint64_t kept = std::accumulate(sampled.kept_counts().begin(),
                                          sampled.kept_counts().end(), uint64_t{0});
    if (sampled.kept_counts_size() != sampled.ids_size() ||
        kept != static_cast<uint64_t>(sampled.kept_ids_size())) {
      return Bad(*state, "what tokens were drawn from is not whole");
    }
    state->kept_counts.resize(begin, 0);
    state->kept_counts.insert(state->kept_counts.end(), sampled.kept_counts().begin(),
                              sampled.kept_counts().end());
    state->kept_ids.insert(state->kept_ids.end(), sampled.kept_ids().begin(),
                           sampled.kept_ids().end());
  }

  if (state->segments.back().role != Segment::Role::kSampled) {
    Segment segment;
    segment.role = Segment::Role::kSampled;
    segment.begin = begin;
    segment.turn = state->turns++;
    state->segments.push_back(std::move(segment));
  }
  state->segments.back().end = end;
  if (!state->exchanges.empty()) state->exchanges.back().end = end;
  for (int i = 0; i < sampled.alternatives_size(); ++i)
    state->alternatives[begin + static_cast<uint64_t>(i)] = sampled.alternatives(i);

  std::vector<VersionSpan>& spans = state->version_spans;
  if (!spans.empty() && spans.back().version == sampled.weight_version() &&
      spans.back().end == begin) {
    spans.back().end = end;
  } else {
    spans.push_back({sampled.weight_version(), begin, end});
  }
  return absl::OkStatus();
}

absl::Status ApplyFed(TrajectoryState* state, const journal::FedTokens& fed) {
  const uint64_t begin = state->tokens.size();
  if (fed.position() != begin) {
    return Bad(*state,
               fmt::format("fed tokens at {} do not follow {} tokens", fed.position(), begin));
  }
  state->tokens.insert(state->tokens.end(), fed.ids().begin(), fed.ids().end());
  state->loss_mask.resize(state->tokens.size(), 0);
  state->logprobs.resize(state->tokens.size(), 0.0f);
  Segment segment;
  segment.role = Segment::Role::kTool;
  segment.begin = begin;
  segment.end = state->tokens.size();
  segment.turn = state->turns;
  segment.call_ids.assign(fed.call_ids().begin(), fed.call_ids().end());
  state->segments.push_back(std::move(segment));
  return absl::OkStatus();
}

absl::Status ApplyDone(TrajectoryState* state, const journal::CallDone& done) {
  for (CallState& call : state->calls) {
    if (call.issued.call_id() != done.call_id()) continue;
    if (call.done.has_value())
      return Bad(*state, fmt::format("a second result of call \"{}\"", done.call_id()));
    call.done = done;
    return absl::OkStatus();
  }
  return Bad(*state, fmt::format("a result of call \"{}\" that was never issued", done.call_id()));
}

absl::Status ApplyExchange(TrajectoryState* state, const journal::ExchangeBegun& begun) {
  if (!state->exchanges.empty() && !state->exchanges.back().done.has_value())
    return Bad(*state, "an exchange begins before the one before it is answered");
  if (begun.begin() != state->tokens.size()) {
    return Bad(*state, fmt::format("an exchange at {} does not follow {} tokens", begun.begin(),
                                   state->tokens.size()));
  }
  state->exchanges.push_back({begun, begun.begin(), std::nullopt});
  return absl::OkStatus();
}

absl::Status ApplyAnswered(TrajectoryState* state, const journal::ExchangeDone& done) {
  if (state->exchanges.empty() || state->exchanges.back().done.has_value())
    return Bad(*state, "an exchange ends that did not begin");
  state->exchanges.back().done = done;
  return absl::OkStatus();
}

absl::Status ApplyIssued(TrajectoryState* state, const journal::CallIssued& issued) {
  for (const CallState& call : state->calls) {
    if (call.issued.call_id() == issued.call_id()) {
      return Bad(*state, fmt::format("call \"{}\" is issued twice", issued.call_id()));
    }
  }
  state->calls.push_back({issued, std::nullopt});
  return absl::OkStatus();
}

absl::Status ApplySwitched(TrajectoryState* state, const journal::Switched& switched) {
  if (switched.weight_version() <= state->weight_version()) {
    return Bad(*state, fmt::format("a switch from weight version {} to {}", state->weight_version(),
                                   switched.weight_version()));
  }
  if (switched.kept_tokens() >= state->tokens.size()) {
    return Bad(*state, fmt::format("a switch that keeps the state of {} tokens out of {}",
                                   switched.kept_tokens(), state->tokens.size()));
  }
  std::vector<KvSpan>& spans = state->kv_spans;
  while (!spans.empty() && spans.back().begin >= switched.kept_tokens()) spans.pop_back();
  spans.push_back({switched.weight_version(), switched.kept_tokens()});
  state->switches.push_back(
      {state->tokens.size(), switched.weight_version(), switched.kept_tokens()});
  return absl::OkStatus();
}

}  // namespace

absl::Status TrajectoryState::Apply(const journal::TrajectoryEntry& entry) {
  using Entry = journal::TrajectoryEntry;
  if (entries == 0 && entry.entry_case() != Entry::kStart)
    return Bad(*this, "the first entry is not a start");
  if (sealed.has_value()) return Bad(*this, "an entry after the seal");
  absl::Status status;
  switch (entry.entry_case()) {
    case Entry::kStart:
      status = ApplyStart(this, entry.start());
      break;
    case Entry::kSampled:
      status = ApplySampled(this, entry.sampled());
      break;
    case Entry::kFed:
      status = ApplyFed(this, entry.fed());
      break;
    case Entry::kIssued:
      status = ApplyIssued(this, entry.issued());
      break;
    case Entry::kDone:
      status = ApplyDone(this, entry.done());
      break;
    case Entry::kReward:
      if (reward.has_value()) return Bad(*this, "a second reward");
      reward = entry.reward();
      break;
    case Entry::kSealed:
      sealed = entry.sealed();
      break;
    case Entry::kResumed:
      resumed.push_back(entry.resumed());
      break;
    case Entry::kSwitched:
      status = ApplySwitched(this, entry.switched());
      break;
    case Entry::kExchange:
      status = ApplyExchange(this, entry.exchange());
      break;
    case Entry::kAnswered:
      status = ApplyAnswered(this, entry.answered());
      break;
    case Entry::ENTRY_NOT_SET:
      return Bad(*this, "an entry of a kind that this program does not know");
  }
  RETURN_IF_ERROR(status);
  ++entries;
  return absl::OkStatus();
}

bool IsValid(const TrajectoryState& state) {
  const std::string& kind = state.sealed->failure_kind();
  return state.sealed->status() != "aborted" && (kind.empty() || kind == "model" || kind == "tool");
}

bool IsRetriable(const journal::Sealed& sealed) {
  const std::string& kind = sealed.failure_kind();
  return kind == "infra" || kind == "grader" || kind == "timeout" ||
         (sealed.status() == "aborted" && sealed.stop_reason() == "stale");
}

absl::StatusOr<TrajectoryState> Fold(const std::vector<journal::TrajectoryEntry>& entries) {
  TrajectoryState state;
  for (const journal::TrajectoryEntry& entry : entries) RETURN_IF_ERROR(state.Apply(entry));
  return state;
}

}  // namespace reprise::replay
