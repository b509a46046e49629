// Rendering of messages to a prompt.
#include "engine/chat.h"

#include <fmt/format.h>

#include "base/status_macros.h"
#include "engine/chat_json.h"
#include "engine/chat_text.h"
#include "engine/json.h"

namespace reprise::engine {
namespace {

class Renderer {
 public:
  Renderer(std::vector<ChatMessage> messages, const ChatOptions& options)
      : messages_(std::move(messages)),
        thinking_(options.mode == ThinkingMode::kThinking),
        options_(options) {
    drop_ = options.drop_thinking;
    for (const ChatMessage& message : messages_) drop_ &= !message.tools.truthy();
    if (thinking_ && drop_) DropOldReasoning();
    last_user_ = LastUser();
  }

  absl::StatusOr<std::vector<PromptPiece>> Render() {
    if (options_.add_bos) Markup(kBos);
    for (size_t i = 0; i < messages_.size(); ++i) {
      if (i == 0 && thinking_ && options_.effort == Effort::kMax) Markup(kEffortMax);
      RETURN_IF_ERROR(RenderOne(i));
      Transition(i);
    }
    return std::move(pieces_);
  }

 private:
  void Add(std::string_view text, bool markup) {
    if (text.empty()) return;
    if (!pieces_.empty() && pieces_.back().markup == markup) {
      pieces_.back().text += text;
    } else {
      pieces_.push_back({std::string(text), markup});
    }
  }
  void Markup(std::string_view text) { Add(text, true); }
  void Text(std::string_view text) { Add(text, false); }

  // Index of the last user or developer message; -1 when there is none.
  ptrdiff_t LastUser() const {
    for (size_t i = messages_.size(); i-- > 0;) {
      if (messages_[i].role == "user" || messages_[i].role == "developer")
        return static_cast<ptrdiff_t>(i);
    }
    return -1;
  }

  void DropOldReasoning() {
    const ptrdiff_t last = LastUser();
    std::vector<ChatMessage> kept;
    for (size_t i = 0; i < messages_.size(); ++i) {
      ChatMessage& message = messages_[i];
      if (static_cast<ptrdiff_t>(i) < last) {
        if (message.role == "developer") continue;
        if (message.role == "assistant") message.reasoning.clear();
      }
      kept.push_back(std::move(message));
    }
    messages_ = std::move(kept);
  }

  absl::Status RenderOne(size_t i) {
    const ChatMessage& message = messages_[i];
    if (message.role == "system" || message.role == "developer") {
      if (message.role == "developer") Markup(kUser);
      Text(message.content);
      return ToolsAndFormat(message, i);
    }
    if (message.role == "user") {
      Markup(kUser);
      for (size_t b = 0; b < message.blocks.size(); ++b) {
        if (b > 0) Markup("\n\n");
        const ChatBlock& block = message.blocks[b];
        const bool result = block.kind == ChatBlock::Kind::kToolResult;
        if (result) Markup(kResultOpen);
        Text(block.text);
        if (result) Markup(kResultClose);
      }
      return absl::OkStatus();
    }
    if (message.role == "latest_reminder") {
      Markup(kLatestReminder);
      Text(message.content);
      return absl::OkStatus();
    }
    if (message.role == "assistant") {
      Assistant(i);
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        fmt::format("messages: role \"{}\" cannot be rendered here", message.role));
  }

  absl::Status ToolsAndFormat(const ChatMessage& message, size_t i) {
    if (message.tools.truthy()) {
      Markup("\n\n");
      Markup(kToolsBefore);
      for (size_t t = 0; t < message.tools.items.size(); ++t) {
        const JsonValue& tool = message.tools.items[t];
        const JsonValue* function = tool.Find("function");
        if (function == nullptr) function = &tool;
        const JsonValue* name = function->Find("name");
        if (name == nullptr || !name->is_string()) {
          return absl::InvalidArgumentError(
              fmt::format("messages[{}].tools[{}] has no function name", i, t));
        }
        if (t > 0) Markup("\n");
        Text(DumpJson(*function));
      }
      Markup(kToolsAfter);
    }
    if (message.response_format.truthy()) {
      Markup("\n\n");
      Markup(kResponseFormat);
      Text(DumpJson(message.response_format));
    }
    return absl::OkStatus();
  }

  void Assistant(size_t i) {
    const ChatMessage& message = messages_[i];
    const bool after_task = i > 0 && !messages_[i - 1].task.empty();
    if (thinking_ && !after_task && (!drop_ || static_cast<ptrdiff_t>(i) > last_user_)) {
      Text(message.reasoning);
      Markup(kThinkClose);
    }
    Text(message.content);
    if (!message.calls.empty()) {
      Markup("\n\n");
      Markup(kCallsOpen);
      for (const ChatCall& call : message.calls) Call(call);
      Markup("\n");
      Markup(kCallsClose);
    }
    if (!message.wo_eos) Markup(kEos);
  }

  void Parameter(std::string_view name, bool string, std::string_view value) {
    Markup(kParameterOpen);
    Text(name);
    Markup(string ? "\" string=\"true\">" : "\" string=\"false\">");
    Text(value);
    Markup(kParameterClose);
  }

  void Call(const ChatCall& call) {
    Markup("\n");
    Markup(kInvokeOpen);
    Text(call.name);
    Markup("\">\n");
    if (call.arguments.is_string()) {
      Parameter("arguments", true, call.arguments.text);
    } else {
      for (size_t p = 0; p < call.arguments.members.size(); ++p) {
        const auto& [name, value] = call.arguments.members[p];
        if (p > 0) Markup("\n");
        Parameter(name, value.is_string(), value.is_string() ? value.text : DumpJson(value));
      }
    }
    Markup("\n");
    Markup(kInvokeClose);
  }

  void Transition(size_t i) {
    if (i + 1 < messages_.size()) {
      const std::string& next = messages_[i + 1].role;
      if (next != "assistant" && next != "latest_reminder") return;
    }
    const ChatMessage& message = messages_[i];
    if (!message.task.empty()) {
      if (message.task == "action") {
        Markup(kAssistant);
        Markup(thinking_ ? kThinkOpen : kThinkClose);
      }
      Markup(fmt::format("<｜{}｜>", message.task));
    } else if (message.role == "user" || message.role == "developer") {
      Markup(kAssistant);
      Markup(thinking_ && (!drop_ || static_cast<ptrdiff_t>(i) >= last_user_) ? kThinkOpen
                                                                              : kThinkClose);
    }
  }

  std::vector<ChatMessage> messages_;
  const bool thinking_;
  const ChatOptions& options_;
  bool drop_ = true;
  ptrdiff_t last_user_ = -1;
  std::vector<PromptPiece> pieces_;
};

}  // namespace

absl::StatusOr<ThinkingMode> ParseThinkingMode(std::string_view name) {
  if (name == "chat") return ThinkingMode::kChat;
  if (name == "thinking") return ThinkingMode::kThinking;
  return absl::InvalidArgumentError(
      fmt::format("thinking mode \"{}\" is not one of chat, thinking", name));
}

absl::StatusOr<Effort> ParseEffort(std::string_view name) {
  if (name.empty() || name == "none") return Effort::kNone;
  if (name == "high") return Effort::kHigh;
  if (name == "max") return Effort::kMax;
  return absl::InvalidArgumentError(
      fmt::format("effort \"{}\" is not one of none, high, max", name));
}

absl::StatusOr<std::vector<PromptPiece>> EncodeChat(std::string_view messages_json,
                                                    const ChatOptions& options) {
  ASSIGN_OR_RETURN(std::vector<ChatMessage> messages,
                   ReadMessages(messages_json, options.tools_json));
  return Renderer(std::move(messages), options).Render();
}

std::vector<PromptPiece> EncodeToolResults(const std::vector<std::string>& results,
                                           ThinkingMode mode) {
  std::vector<PromptPiece> pieces;
  pieces.push_back({std::string(kUser), true});
  for (size_t i = 0; i < results.size(); ++i) {
    pieces.back().text += fmt::format("{}{}", i > 0 ? "\n\n" : "", kResultOpen);
    pieces.push_back({results[i], false});
    pieces.push_back({std::string(kResultClose), true});
  }
  pieces.back().text +=
      fmt::format("{}{}", kAssistant, mode == ThinkingMode::kThinking ? kThinkOpen : kThinkClose);
  return pieces;
}

std::string JoinPieces(const std::vector<PromptPiece>& pieces) {
  std::string text;
  for (const PromptPiece& piece : pieces) text += piece.text;
  return text;
}

absl::StatusOr<std::string> PromptJson(std::string_view json) {
  ASSIGN_OR_RETURN(JsonValue value, ParseJson(json));
  return DumpJson(value);
}

}  // namespace reprise::engine
