// Parsing of a sampled assistant turn. A block of calls is taken whole or not at all: whatever is
// wrong in it gives an error that says where, and no call.
#include <fmt/format.h>

#include <set>

#include "base/status_macros.h"
#include "engine/chat.h"
#include "engine/chat_text.h"
#include "engine/json.h"

namespace reprise::engine {
namespace {

class BlockParser {
 public:
  // `text` begins after the opener "<｜DSML｜tool_calls>"; `offset` is its place in the turn, for
  // messages.
  BlockParser(std::string_view text, size_t offset) : text_(text), offset_(offset) {}

  absl::StatusOr<std::vector<ToolCall>> Parse() {
    RETURN_IF_ERROR(Expect("\n", "a newline after <｜DSML｜tool_calls>"));
    std::vector<ToolCall> calls;
    while (!Take(kCallsClose)) {
      ASSIGN_OR_RETURN(ToolCall call, Invoke());
      calls.push_back(std::move(call));
    }
    if (at_ != text_.size()) return Error("text after </｜DSML｜tool_calls>");
    if (calls.empty()) return Error("the block has no <｜DSML｜invoke>");
    return calls;
  }

 private:
  absl::Status Error(std::string_view what) const {
    return absl::InvalidArgumentError(
        fmt::format("tool call markup, byte {}: {}", offset_ + at_, what));
  }
  bool Take(std::string_view token) {
    if (text_.substr(at_, token.size()) != token) return false;
    at_ += token.size();
    return true;
  }
  absl::Status Expect(std::string_view token, std::string_view what) {
    return Take(token) ? absl::OkStatus() : Error(fmt::format("expected {}", what));
  }
  // Text up to `end`, which is taken as well.
  absl::StatusOr<std::string> Until(std::string_view end, std::string_view what) {
    const size_t found = text_.find(end, at_);
    if (found == std::string_view::npos) return Error(fmt::format("{} is not closed", what));
    std::string value(text_.substr(at_, found - at_));
    at_ = found + end.size();
    return value;
  }

  absl::StatusOr<ToolCall> Invoke() {
    RETURN_IF_ERROR(Expect(kInvokeOpen, "<｜DSML｜invoke name=\"...\"> or </｜DSML｜tool_calls>"));
    ToolCall call;
    ASSIGN_OR_RETURN(call.name, Until("\"", "the tool name"));
    if (call.name.empty() || call.name.find('\n') != std::string::npos)
      return Error("the tool name is malformed");
    RETURN_IF_ERROR(Expect(">\n", "> and a newline after the tool name"));
    call.arguments_json = "{";
    std::set<std::string> names;
    while (!Take(kInvokeClose)) {
      if (names.empty() && Take("\n")) {  // a call without parameters may hold one empty line
        RETURN_IF_ERROR(Expect(kInvokeClose, "</｜DSML｜invoke> after an empty line"));
        break;
      }
      RETURN_IF_ERROR(Parameter(&call, &names));
    }
    call.arguments_json += "}";
    RETURN_IF_ERROR(Expect("\n", "a newline after </｜DSML｜invoke>"));
    return call;
  }

  absl::Status Parameter(ToolCall* call, std::set<std::string>* names) {
    RETURN_IF_ERROR(
        Expect(kParameterOpen, "<｜DSML｜parameter name=\"...\"> or </｜DSML｜invoke>"));
    ASSIGN_OR_RETURN(std::string name, Until("\"", "the parameter name"));
    const bool string = Take(" string=\"true\">");
    if (!string)
      RETURN_IF_ERROR(Expect(" string=\"false\">", "string=\"true\"> or string=\"false\">"));
    ASSIGN_OR_RETURN(std::string value,
                     Until(kParameterClose, fmt::format("parameter \"{}\"", name)));
    if (value.find(kDsml) != std::string::npos)
      return Error(fmt::format("parameter \"{}\" holds markup", name));
    if (!names->insert(name).second)
      return Error(fmt::format("parameter \"{}\" is given twice", name));
    if (!string) {
      absl::StatusOr<JsonValue> json = ParseJson(value);
      if (!json.ok()) {
        return Error(
            fmt::format("parameter \"{}\" is marked string=\"false\" but is not JSON", name));
      }
    }
    if (names->size() > 1) call->arguments_json += ", ";
    call->arguments_json +=
        fmt::format("{}: {}", DumpJsonString(name), string ? DumpJsonString(value) : value);
    return Expect("\n", "a newline after </｜DSML｜parameter>");
  }

  std::string_view text_;
  size_t offset_;
  size_t at_ = 0;
};

void ParseContent(std::string_view text, size_t offset, ParsedTurn* turn) {
  const size_t marker = text.find(kDsml);
  if (marker == std::string_view::npos) {
    turn->content = std::string(text);
    return;
  }
  const std::string opener = fmt::format("\n\n{}", kCallsOpen);
  const size_t open = text.find(opener);
  // The marker of the opener must be the first of all.
  if (open == std::string_view::npos || open + opener.find(kDsml) != marker) {
    turn->content = std::string(text);
    turn->error = fmt::format(
        "tool call markup, byte {}: expected a blank line and <｜DSML｜tool_calls> first",
        offset + marker);
    return;
  }
  turn->content = std::string(text.substr(0, open));
  const size_t inside = open + opener.size();
  absl::StatusOr<std::vector<ToolCall>> calls =
      BlockParser(text.substr(inside), offset + inside).Parse();
  if (calls.ok()) {
    turn->tool_calls = *std::move(calls);
  } else {
    turn->error = std::string(calls.status().message());
  }
}

}  // namespace

ParsedTurn ParseTurn(std::string_view text, ThinkingMode mode) {
  ParsedTurn turn;
  const size_t eos = text.find(kEos);
  const bool ended = eos != std::string_view::npos;
  if (ended && eos + kEos.size() != text.size()) {
    turn.content = std::string(text);
    turn.error = fmt::format("byte {}: text after the end of the sentence", eos + kEos.size());
    return turn;
  }
  if (ended) text = text.substr(0, eos);
  size_t offset = 0;
  if (mode == ThinkingMode::kThinking) {
    const size_t close = text.find(kThinkClose);
    const size_t marker = text.find(kDsml);
    if (marker < close) {
      turn.reasoning = std::string(text);
      turn.error =
          fmt::format("byte {}: tool calls before </think>; close the reasoning first", marker);
      return turn;
    }
    if (close == std::string_view::npos) {
      turn.reasoning = std::string(text);
      return turn;
    }
    turn.reasoning = std::string(text.substr(0, close));
    offset = close + kThinkClose.size();
    text = text.substr(offset);
  }
  ParseContent(text, offset, &turn);
  return turn;
}

}  // namespace reprise::engine
