// What a trajectory's log adds up to: its tokens with mask, log-probabilities and versions, its
// segments, its calls, and what it waits for. Folding the log is the only way this state is ever
// made, live or after a crash.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/journal/v1/journal.pb.h"

namespace reprise::replay {

namespace journal = ::reprise::journal::v1;

struct Segment {
  enum class Role { kPrompt, kSampled, kTool } role = Role::kPrompt;
  uint64_t begin = 0, end = 0;  // token indices
  uint32_t turn = 0;            // assistant turns before it
  std::vector<std::string> call_ids;
};

struct CallState {
  journal::CallIssued issued;
  std::optional<journal::CallDone> done;
};

struct VersionSpan {
  uint64_t version = 0, begin = 0, end = 0;  // token indices; sampled tokens only
};

// Which weights feed the tokens from `begin` on, to the next span's.
struct KvSpan {
  uint64_t version = 0, begin = 0;
};

// A change of weights while it ran.
struct WeightSwitch {
  uint64_t at_token = 0;  // tokens before it
  uint64_t version = 0;   // from then on
  uint64_t kept = 0;      // tokens whose KV state stayed
};

// A request of an agent outside, and the tokens that answer it.
struct Exchange {
  journal::ExchangeBegun begun;
  uint64_t end = 0;  // one past its last token so far
  std::optional<journal::ExchangeDone> done;
};

struct TrajectoryState {
  journal::TrajectoryStart start;
  std::vector<int32_t> tokens;     // prompt included
  std::vector<uint8_t> loss_mask;  // 1 = sampled
  std::vector<float> logprobs;     // 0 off mask
  std::string routed_experts;  // of tokens 0.. in order, all but the last one; empty: not recorded
  std::vector<VersionSpan> version_spans;
  std::vector<KvSpan> kv_spans;        // at least one; what a KV state of its tokens is made of
  std::vector<WeightSwitch> switches;  // in order
  std::vector<Segment> segments;
  std::vector<CallState> calls;  // in the order in which they were issued
  std::vector<Exchange> exchanges;  // of an external job; the last may be open
  std::map<uint64_t, journal::TokenAlternatives> alternatives;  // by token index, where recorded
  // What the sampled tokens were drawn from, where that was recorded: how many ids of each token, as
  // far as the last that has some, and all of them in order.
  std::vector<uint32_t> kept_counts;
  std::vector<int32_t> kept_ids;
  // Of tokens that were sampled under a mask, as far as the last of them: how many tokens it left (0:
  // it forbade none) and the log-probability of them together. Empty: no mask forbade anything.
  std::vector<uint32_t> allowed_counts;
  std::vector<float> allowed_logprobs;
  std::optional<journal::RewardDone> reward;
  std::optional<journal::Sealed> sealed;
  std::vector<journal::Resumed> resumed;
  uint64_t entries = 0;  // length of the log
  uint32_t turns = 0;    // assistant turns begun

  // Adds the next entry. DATA_LOSS when it cannot follow what came before (position, order, double
  // result).
  absl::Status Apply(const journal::TrajectoryEntry& entry);
  uint64_t weight_version() const { return kv_spans.back().version; }
  // Tokens that were certainly fed: all before the last sampled one.
  uint64_t fed_tokens() const { return version_spans.empty() ? 0 : version_spans.back().end - 1; }
  uint64_t prompt_len() const { return static_cast<uint64_t>(start.prompt_ids_size()); }
};

absl::StatusOr<TrajectoryState> Fold(const std::vector<journal::TrajectoryEntry>& entries);

// Whether it may be trained on: a failure that the model caused keeps its reward, one of the
// platform or of the judge never does. REQUIRES: state.sealed.
bool IsValid(const TrajectoryState& state);
// Whether what made it invalid may not meet another attempt: the platform, the judge, time, or
// weights that had become too old.
bool IsRetriable(const journal::Sealed& sealed);

// SHA-256 chain over (ids, mask, logprobs, versions, routes) as replay/FORMAT.md writes it down.
std::string TrajectoryDigest(const TrajectoryState& state);

}  // namespace reprise::replay
