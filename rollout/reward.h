// Judging a finished trajectory: an exact match, or a command whose exit code and last line say the
// reward. A judge that fails gives no reward, which is never the same as a reward of 0.
#pragma once

#include <string>
#include <string_view>

#include "reprise/journal/v1/journal.pb.h"
#include "rollout/job.h"
#include "rollout/sandboxes.h"

namespace reprise::rollout {

namespace journal = ::reprise::journal::v1;

// Most bytes of the response in REPRISE_RESPONSE (its end is kept); standard input always has all
// of it.
inline constexpr size_t kMaxResponseEnvBytes = 96 * 1024;

// kMatch: 1 when `response` without white space at its ends is the answer, else 0.
journal::RewardDone MatchReward(const RewardSpec& spec, std::string_view response);

// kCommand: what sandboxd is asked to run. stdin: {"task": .., "response": .., "metadata": ..}.
sandbox::ExecuteRequest RewardRequest(const Task& task, const std::string& trajectory_id,
                                      std::string_view response);

// Exit 0: the last line of standard output where it is a finite number, else 1. Exit 1: 0. Anything
// else: no value.
journal::RewardDone CommandReward(const CallOutput& output);

}  // namespace reprise::rollout
