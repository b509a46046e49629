#include "rollout/messages.h"

#include <nlohmann/json.hpp>

#include "absl/types/span.h"
#include "engine/chat.h"
#include "rollout/fields.h"
#include "rollout/identity.h"

namespace reprise::rollout {
namespace {

using replay::Segment;
using replay::TrajectoryState;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// The id that a call of a turn got: a fork shares the calls of another trajectory.
std::string IdOf(const TrajectoryState& state, const Segment& segment, size_t index) {
  size_t at = 0;
  for (const replay::CallState& call : state.calls) {
    if (call.issued.span_end() == segment.end && at++ == index) return call.issued.call_id();
  }
  return CallId(state.start.trajectory_id(), segment.turn, static_cast<uint32_t>(index));
}

// One assistant turn as a message, with the calls that it made under the ids that they got.
Json AssistantMessage(const TrajectoryState& state, const Segment& segment,
                      const engine::Tokenizer& tokenizer, engine::ThinkingMode mode) {
  absl::Span<const int32_t> ids(state.tokens.data() + segment.begin, segment.end - segment.begin);
  engine::ParsedTurn turn = engine::ParseTurn(tokenizer.Decode(ids), mode);
  Json message = {{"role", "assistant"}, {"content", turn.content}};
  if (!turn.reasoning.empty()) message["reasoning_content"] = turn.reasoning;
  for (size_t i = 0; i < turn.tool_calls.size(); ++i) {
    const engine::ToolCall& call = turn.tool_calls[i];
    message["tool_calls"].push_back(
        {{"id", IdOf(state, segment, i)},
         {"type", "function"},
         {"function", {{"name", call.name}, {"arguments", call.arguments_json}}}});
  }
  return message;
}

}  // namespace

std::string MessagesJson(const TrajectoryState& state, const Task& task,
                         const engine::Tokenizer& tokenizer, engine::ThinkingMode mode) {
  Json messages = Json::parse(task.messages_json);
  for (const Segment& segment : state.segments) {
    if (segment.role == Segment::Role::kSampled) {
      messages.push_back(AssistantMessage(state, segment, tokenizer, mode));
    }
    if (segment.role != Segment::Role::kTool) continue;
    for (const std::string& id : segment.call_ids) {
      for (const replay::CallState& call : state.calls) {
        if (call.issued.call_id() != id || !call.done) continue;
        messages.push_back(
            {{"role", "tool"}, {"tool_call_id", id}, {"content", call.done->result_text()}});
      }
    }
  }
  return Dump(messages);
}

}  // namespace reprise::rollout
