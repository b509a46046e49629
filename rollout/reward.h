// Judging a finished trajectory: an exact match, a command whose exit code and last line say the
// reward, or an HTTP service (judge.h) that answers with a number. A judge that fails gives no reward, which is never the same as a reward of 0.
#pragma once

#include <string>
#include <string_view>

#include "replay/trajectory_state.h"
#include "reprise/journal/v1/journal.pb.h"
#include "rollout/job.h"
#include "rollout/sandboxes.h"

namespace reprise::rollout {

namespace journal = ::reprise::journal::v1;

// Most bytes of the response in REPRISE_RESPONSE (its end is kept); standard input always has all
// of it.
inline constexpr size_t kMaxResponseEnvBytes = 96 * 1024;

// Longest answer of an HTTP judge, and longest metadata in it that is kept.
inline constexpr size_t kMaxJudgementBytes = 1u << 20;
inline constexpr size_t kMaxRewardMetadataBytes = 64u << 10;

// No value, and why; the reason in at most a few hundred bytes.
journal::RewardDone NoReward(std::string_view why);

// kMatch: 1 when `response` without white space at its ends is the answer, else 0.
journal::RewardDone MatchReward(const RewardSpec& spec, std::string_view response);

// kCommand: what sandboxd is asked to run. stdin: {"task": .., "response": .., "metadata": ..}.
sandbox::ExecuteRequest RewardRequest(const Task& task, const std::string& trajectory_id,
                                      std::string_view response);

// Exit 0: the last line of standard output where it is a finite number, else 1. Exit 1: 0. Anything
// else: no value.
journal::RewardDone CommandReward(const CallOutput& output);

// kHttp: what the judge is asked. `messages_json`: the conversation; `status`, `stop_reason`: how the
// trajectory ended.
std::string JudgeBody(const Task& task, const replay::TrajectoryState& state,
                      const std::string& messages_json, std::string_view response,
                      std::string_view status, std::string_view stop_reason);

// kHttp: status 200 with a number, or an object whose "reward" is one, is the reward; it may have
// "components" (an object of numbers) and "metadata" (anything). Everything else gives no value,
// null and numbers that are no finite float32 among them.
journal::RewardDone ReadJudgement(int status, std::string_view body);

}  // namespace reprise::rollout
