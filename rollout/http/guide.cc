#include "rollout/http/guide.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "rollout/text.h"

namespace reprise::rollout::http {
namespace {

using engine::JsonValue;

constexpr char kAnyObject[] = R"({"type": "object"})";

JsonValue Text(std::string text) {
  JsonValue value;
  value.kind = JsonValue::Kind::kString;
  value.text = std::move(text);
  return value;
}

std::optional<Guide> ReadResponseFormat(RequestFields* fields) {
  const JsonValue* format = fields->Find("response_format");
  if (format == nullptr) return ReadSchemaGuide(fields, "guided_json");
  const JsonValue* type = format->Find("type");
  const std::string name = type == nullptr ? "" : type->text;
  if (name == "text") return ReadSchemaGuide(fields, "guided_json");
  Guide guide;
  guide.field = "response_format";
  guide.spec.response_schema_json = kAnyObject;
  if (name == "json_object") return guide;
  const JsonValue* named = format->Find("json_schema");
  const JsonValue* schema = named == nullptr ? nullptr : named->Find("schema");
  if (name != "json_schema" || schema == nullptr || !schema->is_object()) {
    fields->Fail("response_format",
                 "a type text or json_object, or json_schema with a schema, is wanted");
    return std::nullopt;
  }
  guide.spec.response_schema_json = DumpJson(*schema);
  guide.in_prompt = true;
  return guide;
}

// A member of a function, which may stand in an object of its own.
const JsonValue* OfFunction(const JsonValue& value, std::string_view member) {
  const JsonValue* function = value.Find("function");
  return (function == nullptr ? &value : function)->Find(member);
}

bool IsStrict(const JsonValue& tool) {
  const JsonValue* strict = OfFunction(tool, "strict");
  return strict != nullptr && strict->kind == JsonValue::Kind::kBool && strict->boolean;
}

// Of tool_choice; false: it is none of those that are served.
bool ReadChoice(const JsonValue* choice, engine::GrammarSpec* spec) {
  if (choice == nullptr || choice->text == "auto" || choice->text == "none") return true;
  if (choice->is_string()) {
    spec->choice = engine::CallChoice::kRequired;
    return choice->text == "required";
  }
  const JsonValue* name = OfFunction(*choice, "name");
  if (name == nullptr || !name->is_string()) return false;
  spec->choice = engine::CallChoice::kNamed;
  spec->tool = name->text;
  return true;
}

}  // namespace

std::optional<Guide> ReadSchemaGuide(RequestFields* fields, const char* field) {
  const JsonValue* schema = fields->Find(field);
  if (schema == nullptr) return std::nullopt;
  Guide guide;
  guide.field = field;
  guide.spec.response_schema_json = schema->is_string() ? schema->text : DumpJson(*schema);
  if (!guide.spec.response_schema_json.empty()) return guide;
  fields->Fail(field, "a JSON schema is wanted");
  return std::nullopt;
}

std::optional<Guide> ReadGuide(RequestFields* fields) {
  const JsonValue* tools = fields->Find("tools");
  const JsonValue* choice = fields->Find("tool_choice");
  const bool has_tools = tools != nullptr && tools->is_array() && !tools->items.empty() &&
                         (choice == nullptr || choice->text != "none");
  Guide calls;
  if (!ReadChoice(choice, &calls.spec)) {
    fields->Fail("tool_choice",
                 "\"auto\", \"none\", \"required\" or {\"type\": \"function\", \"function\": "
                 "{\"name\": ...}} is wanted");
    return std::nullopt;
  }
  const bool automatic = calls.spec.choice == engine::CallChoice::kAuto;
  if (!automatic && !has_tools) fields->Fail("tool_choice", "there are no tools to choose from");
  const auto chosen = [&](const JsonValue& tool) {
    const JsonValue* name = OfFunction(tool, "name");
    return name != nullptr && name->text == calls.spec.tool;
  };
  if (has_tools && calls.spec.choice == engine::CallChoice::kNamed &&
      std::none_of(tools->items.begin(), tools->items.end(), chosen))
    fields->Fail("tool_choice", fmt::format("there is no tool \"{}\"", calls.spec.tool));
  std::optional<Guide> guide = ReadResponseFormat(fields);
  if (guide.has_value() && has_tools) {
    fields->Fail(guide->field,
                 "not served beside tools: leave them out, or say \"tool_choice\": "
                 "\"none\"");
  }
  if (has_tools &&
      (!automatic || std::any_of(tools->items.begin(), tools->items.end(), IsStrict))) {
    calls.field = "tools";
    calls.spec.tools_json = DumpJson(*tools);
    if (!fields->Bool("parallel_tool_calls", true)) calls.spec.max_calls = 1;
    guide = std::move(calls);
  }
  if (guide.has_value() && fields->Bool("ignore_eos", false))
    fields->Fail("ignore_eos", fmt::format("not served with {}: the form ends", guide->field));
  return guide;
}

JsonValue WithSchema(JsonValue messages, const Guide& guide) {
  auto schema = engine::ParseJson(guide.spec.response_schema_json);
  if (!guide.in_prompt || !schema.ok()) return messages;
  const JsonValue* role = messages.items.empty() ? nullptr : messages.items[0].Find("role");
  if (role == nullptr || role->text != "system") {
    JsonValue system;
    system.kind = JsonValue::Kind::kObject;
    system.members = {{"role", Text("system")}, {"content", Text("")}};
    messages.items.insert(messages.items.begin(), std::move(system));
  }
  messages.items[0].members.emplace_back("response_format", *std::move(schema));
  return messages;
}

absl::StatusOr<std::shared_ptr<engine::TokenMasks>> MasksOf(Guide guide, engine::ThinkingMode mode,
                                                            const ServedModel& model) {
  guide.spec.mode = mode;
  auto grammar = engine::AnswerGrammar::Compile(guide.spec);
  if (!grammar.ok()) return BadField(guide.field, Message(grammar.status()));
  auto masks = model.engine().MasksFor(*std::move(grammar));
  if (!masks.ok()) return BadField(guide.field, Message(masks.status()));
  return masks;
}

}  // namespace reprise::rollout::http
