#include "rollout/fork.h"

#include <fmt/format.h>

#include "base/status_macros.h"
#include "replay/trajectory_state.h"
#include "rollout/identity.h"

namespace reprise::rollout {

absl::StatusOr<std::vector<journal::TrajectoryEntry>> ForkLog(
    const std::vector<journal::TrajectoryEntry>& parent, const ForkPlan& plan) {
  std::vector<journal::TrajectoryEntry> shared;
  replay::TrajectoryState state;  // of `shared`
  for (const journal::TrajectoryEntry& entry : parent) {
    if (entry.has_reward() || entry.has_sealed()) break;
    const bool begins_turn = entry.has_sampled() && !state.segments.empty() &&
                             state.segments.back().role != replay::Segment::Role::kSampled;
    if (begins_turn && state.turns == plan.at_step) break;
    RETURN_IF_ERROR(state.Apply(entry));
    shared.push_back(entry);
  }
  const bool ended =
      state.segments.empty() || state.segments.back().role == replay::Segment::Role::kSampled;
  if (state.turns != plan.at_step || ended) {
    return absl::FailedPreconditionError(
        fmt::format("trajectory {} does not go on after {} assistant turns: step {} is not one of "
                    "its, allowed: "
                    "0..{}",
                    parent.front().start().trajectory_id(), state.turns, plan.at_step,
                    ended && state.turns > 0 ? state.turns - 1 : state.turns));
  }
  journal::TrajectoryStart* start = shared.front().mutable_start();
  journal::ForkStart fork;
  fork.set_parent_id(start->trajectory_id());
  fork.set_at_step(plan.at_step);
  fork.set_number(plan.number);
  fork.set_shared_tokens(state.tokens.size());
  for (const replay::CallState& call : state.calls) {
    if (!call.done || call.done->outcome() == ::reprise::sandbox::v1::OUTCOME_UNSPECIFIED) continue;
    fork.set_last_call_id(call.issued.call_id());
    fork.set_sandbox_id(SandboxId(TrajectoryOfCall(call.issued.call_id())));
  }
  start->set_trajectory_id(plan.id);
  start->set_seed(plan.seed);
  *start->mutable_fork() = std::move(fork);
  return shared;
}

}  // namespace reprise::rollout
