// What a trajectory does next, as a function of its log alone. The scheduler asks after every
// entry, live and after a restart alike, so that resuming is nothing but asking again.
//
// Next() never looks at clocks, sandboxes or memory of the process: the same log gives the same
// action.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/chat.h"
#include "engine/engine.h"
#include "engine/tokenizer.h"
#include "replay/trajectory_state.h"
#include "reprise/journal/v1/journal.pb.h"
#include "rollout/job.h"
#include "rollout/sandboxes.h"

namespace reprise::rollout {

namespace journal = ::reprise::journal::v1;

// What a trajectory is of; the job outlives it.
struct Plan {
  std::string id;
  const JobSpec* job = nullptr;
  const Task* task = nullptr;
  uint32_t sample = 0;
  uint64_t seed = 0;
};

// index: group-major, 0..trajectories()-1; attempt: at that sample, from 0
Plan MakePlan(const JobSpec& job, size_t index, uint32_t attempt = 0);

struct Action {
  enum class Kind {
    kDecode,  // sample the next token
    kAppend,  // write `entries`, then ask again
    kCall,    // run `request` once everything before it is durable, write what OnCall makes of the
              // answer
    kGrade,   // the same with OnGrade
    kJudge,   // ask the task's HTTP judge `judge_body` once everything before it is durable, write
              // its answer
    kDone,    // the trajectory is sealed
  } kind = Kind::kDone;
  std::vector<journal::TrajectoryEntry> entries;
  sandbox::ExecuteRequest request;
  std::string judge_body;
};

class TrajectoryLogic {
 public:
  // `tokenizer` outlives this. `max_context`: of the engine.
  TrajectoryLogic(const engine::Tokenizer* tokenizer, int32_t eos_id, int64_t max_context,
                  std::string log_engine_digest);

  // Entry 0, with the prompt. The clock field is the caller's.
  absl::StatusOr<journal::TrajectoryEntry> Begin(const Plan& plan) const;
  // REQUIRES: `state` has its entry 0. Sealed entries come without time, timing and digest.
  Action Next(const Plan& plan, const replay::TrajectoryState& state) const;
  journal::TrajectoryEntry OnCall(const Plan& plan, const std::string& call_id,
                                  const CallOutput& output) const;
  journal::TrajectoryEntry OnGrade(const CallOutput& output) const;
  static journal::TrajectoryEntry OnJudge(journal::RewardDone done);

  const std::string& log_engine_digest() const { return log_engine_digest_; }

 private:
  struct Ending {
    std::string status, stop_reason, failure_kind, failure;
  };
  struct Turn;

  std::optional<Ending> Limit(const Plan& plan, const replay::TrajectoryState& state) const;
  Turn ReadTurn(const Plan& plan, const replay::TrajectoryState& state) const;
  Action AfterTurn(const Plan& plan, const replay::TrajectoryState& state) const;
  Action Issue(const Plan& plan, const replay::TrajectoryState& state, const Turn& turn) const;
  Action Feed(const Plan& plan, const replay::TrajectoryState& state, const Turn& turn) const;
  Action Finish(const Plan& plan, const replay::TrajectoryState& state, const Ending& ending) const;
  std::string FinalContent(const Plan& plan, const replay::TrajectoryState& state) const;
  int64_t Context(const Plan& plan) const;

  const engine::Tokenizer* tokenizer_;
  int32_t eos_id_;
  int64_t max_context_;
  std::string log_engine_digest_;
};

// Notes in `sampled` what a constraint left of the token that was added to it last.
// REQUIRES: it has one token.
void NoteAllowed(const engine::SampledToken& token, journal::SampledTokens* sampled);

// A last entry for a trajectory that cannot go on (platform failure) or must not (cancelled).
journal::TrajectoryEntry SealEntry(std::string_view status, std::string_view stop_reason,
                                   std::string_view failure_kind, std::string_view failure);
// The same for a sample of a group that is delivered to nobody.
journal::TrajectoryEntry DroppedEntry();

}  // namespace reprise::rollout
