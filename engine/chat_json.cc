#include "engine/chat_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/status_macros.h"

namespace reprise::engine {
namespace {

std::string TextOf(const JsonValue* value) {
  return value != nullptr && value->is_string() ? value->text : "";
}

// Text of a content: a string as it is; a list of parts joined by blank lines.
absl::StatusOr<std::string> ContentText(const JsonValue* content, std::string_view where) {
  if (content == nullptr || content->is_null()) return std::string();
  if (content->is_string()) return content->text;
  if (!content->is_array()) {
    return absl::InvalidArgumentError(
        fmt::format("{}.content is neither a string nor a list of parts", where));
  }
  std::string joined;
  for (size_t i = 0; i < content->items.size(); ++i) {
    const JsonValue& part = content->items[i];
    const std::string type = TextOf(part.Find("type"));
    if (i > 0) joined += "\n\n";
    joined += type == "text" ? TextOf(part.Find("text")) : fmt::format("[Unsupported {}]", type);
  }
  return joined;
}

absl::StatusOr<std::vector<ChatCall>> ReadCalls(const JsonValue& calls, std::string_view where) {
  std::vector<ChatCall> read;
  if (!calls.is_array())
    return absl::InvalidArgumentError(fmt::format("{}.tool_calls is not a list", where));
  for (size_t i = 0; i < calls.items.size(); ++i) {
    const JsonValue* function = calls.items[i].Find("function");
    if (function == nullptr) function = &calls.items[i];
    const JsonValue* name = function->Find("name");
    if (name == nullptr || !name->is_string() || name->text.empty()) {
      return absl::InvalidArgumentError(
          fmt::format("{}.tool_calls[{}] has no function name", where, i));
    }
    ChatCall call;
    call.id = TextOf(calls.items[i].Find("id"));
    call.name = name->text;
    if (const JsonValue* arguments = function->Find("arguments"); arguments != nullptr)
      call.arguments = *arguments;
    if (call.arguments.is_string()) {
      absl::StatusOr<JsonValue> parsed = ParseJson(call.arguments.text);
      if (parsed.ok())
        call.arguments = *std::move(parsed);
      else if (call.arguments.text.empty())
        call.arguments.kind = JsonValue::Kind::kObject;
    } else if (call.arguments.is_null()) {
      call.arguments.kind = JsonValue::Kind::kObject;
    }
    const bool raw = call.arguments.is_string();
    if (!raw && !call.arguments.is_object()) {
      return absl::InvalidArgumentError(
          fmt::format("{}.tool_calls[{}].arguments is not a JSON object", where, i));
    }
    read.push_back(std::move(call));
  }
  return read;
}

absl::StatusOr<ChatMessage> ReadMessage(const JsonValue& json, std::string_view where) {
  if (!json.is_object())
    return absl::InvalidArgumentError(fmt::format("{} is not an object", where));
  ChatMessage message;
  message.role = TextOf(json.Find("role"));
  static constexpr std::string_view kRoles[] = {"system",
                                                "user",
                                                "assistant",
                                                "tool",
                                                "developer",
                                                "latest_reminder",
                                                "direct_search_results"};
  if (std::find(std::begin(kRoles), std::end(kRoles), message.role) == std::end(kRoles)) {
    return absl::InvalidArgumentError(fmt::format(
        "{}.role \"{}\" is not one of system, user, assistant, tool, developer, latest_reminder",
        where, message.role));
  }
  ASSIGN_OR_RETURN(message.content, ContentText(json.Find("content"), where));
  message.reasoning = TextOf(json.Find("reasoning_content"));
  if (const JsonValue* calls = json.Find("tool_calls"); calls != nullptr && calls->truthy()) {
    ASSIGN_OR_RETURN(message.calls, ReadCalls(*calls, where));
  }
  if (const JsonValue* tools = json.Find("tools"); tools != nullptr && tools->truthy())
    message.tools = *tools;
  if (const JsonValue* format = json.Find("response_format");
      format != nullptr && format->truthy()) {
    message.response_format = *format;
  }
  message.task = TextOf(json.Find("task"));
  static constexpr std::string_view kTasks[] = {"action", "query", "authority",
                                                "domain", "title", "read_url"};
  if (!message.task.empty() &&
      std::find(std::begin(kTasks), std::end(kTasks), message.task) == std::end(kTasks)) {
    return absl::InvalidArgumentError(fmt::format(
        "{}.task \"{}\" is not one of action, query, authority, domain, title, read_url", where,
        message.task));
  }
  if (message.role == "developer" && message.content.empty()) {
    return absl::InvalidArgumentError(
        fmt::format("{}.content of a developer message is empty", where));
  }
  if (const JsonValue* flag = json.Find("wo_eos"); flag != nullptr) message.wo_eos = flag->truthy();
  if (message.role == "user")
    message.blocks.push_back({ChatBlock::Kind::kText, message.content, ""});
  if (message.role == "tool") {
    message.blocks.push_back(
        {ChatBlock::Kind::kToolResult, message.content, TextOf(json.Find("tool_call_id"))});
  }
  return message;
}

// Steps a: tool messages and neighbouring user messages become one user turn.
std::vector<ChatMessage> Merge(std::vector<ChatMessage> messages) {
  std::vector<ChatMessage> merged;
  for (ChatMessage& message : messages) {
    const bool tool = message.role == "tool";
    if (tool || message.role == "user") {
      const bool joins = !merged.empty() && merged.back().role == "user" &&
                         !merged.back().blocks.empty() && (tool || merged.back().task.empty());
      if (joins) {
        merged.back().blocks.push_back(std::move(message.blocks[0]));
        continue;
      }
      message.role = "user";
      if (tool) message.task.clear();
    }
    merged.push_back(std::move(message));
  }
  return merged;
}

// Step b: tool results stand in the order of the calls that they answer.
void SortResults(std::vector<ChatMessage>* messages) {
  std::map<std::string, size_t> order;
  for (ChatMessage& message : *messages) {
    if (message.role == "assistant" && !message.calls.empty()) {
      order.clear();
      for (size_t i = 0; i < message.calls.size(); ++i) {
        if (!message.calls[i].id.empty()) order[message.calls[i].id] = i;
      }
      continue;
    }
    if (message.role != "user" || order.empty()) continue;
    std::vector<ChatBlock> results;
    for (const ChatBlock& block : message.blocks) {
      if (block.kind == ChatBlock::Kind::kToolResult) results.push_back(block);
    }
    if (results.size() < 2) continue;
    auto place = [&](const ChatBlock& block) {
      auto it = order.find(block.tool_call_id);
      return it == order.end() ? size_t{0} : it->second;
    };
    std::stable_sort(results.begin(), results.end(),
                     [&](const ChatBlock& a, const ChatBlock& b) { return place(a) < place(b); });
    auto next = results.begin();
    for (ChatBlock& block : message.blocks) {
      if (block.kind == ChatBlock::Kind::kToolResult) block = *next++;
    }
  }
}

absl::StatusOr<JsonValue> ReadTools(std::string_view text, std::string_view where) {
  absl::StatusOr<JsonValue> tools = ParseJson(text);
  if (!tools.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {}", where, std::string(tools.status().message())));
  }
  if (!tools->is_array())
    return absl::InvalidArgumentError(fmt::format("{} is not a list of tools", where));
  return tools;
}

}  // namespace

absl::StatusOr<std::vector<ChatMessage>> ReadMessages(std::string_view messages_json,
                                                      std::string_view tools_json) {
  absl::StatusOr<JsonValue> root = ParseJson(messages_json);
  if (!root.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("messages: {}", std::string(root.status().message())));
  }
  const JsonValue* list = root->is_object() ? root->Find("messages") : &*root;
  if (list == nullptr || !list->is_array()) {
    return absl::InvalidArgumentError(
        "messages: expected a list of messages, or an object with \"messages\"");
  }
  JsonValue tools;
  if (const JsonValue* given = root->Find("tools"); given != nullptr) tools = *given;
  if (!tools_json.empty()) {
    ASSIGN_OR_RETURN(tools, ReadTools(tools_json, "tools"));
  }
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < list->items.size(); ++i) {
    ASSIGN_OR_RETURN(ChatMessage message,
                     ReadMessage(list->items[i], fmt::format("messages[{}]", i)));
    messages.push_back(std::move(message));
  }
  if (tools.truthy()) {
    auto system = std::find_if(messages.begin(), messages.end(),
                               [](const ChatMessage& message) { return message.role == "system"; });
    if (system == messages.end()) {
      ChatMessage empty;
      empty.role = "system";
      system = messages.insert(messages.begin(), std::move(empty));
    }
    system->tools = std::move(tools);
  }
  messages = Merge(std::move(messages));
  SortResults(&messages);
  return messages;
}

}  // namespace reprise::engine
