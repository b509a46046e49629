// A trajectory as the chat messages that it stands for: for people and judges, never to be
// tokenised.
#pragma once

#include <string>

#include "engine/chat.h"
#include "engine/tokenizer.h"
#include "replay/trajectory_state.h"
#include "rollout/job.h"

namespace reprise::rollout {

// JSON array: the task's messages, then what the model and its tools said.
std::string MessagesJson(const replay::TrajectoryState& state, const Task& task,
                         const engine::Tokenizer& tokenizer, engine::ThinkingMode mode);

}  // namespace reprise::rollout
