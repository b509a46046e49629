// The turn around the values of grammar_schema.cc: reasoning, content, the block of calls.
#include <utility>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "engine/chat_text.h"
#include "engine/grammar.h"
#include "engine/grammar_nodes.h"
#include "engine/json.h"

namespace reprise::engine {
namespace {

using Kind = GrammarNode::Kind;

absl::Status AddTool(const JsonValue& tool, size_t index, GrammarNodes* nodes, GrammarNode* tools) {
  const JsonValue* function = tool.Find("function");
  if (function == nullptr) function = &tool;
  const JsonValue* name = function->Find("name");
  if (name == nullptr || !name->is_string() || name->text.empty())
    return absl::InvalidArgumentError(fmt::format("tools[{}]: the function has no name", index));
  if (name->text.find_first_of("\"\n") != name->text.npos ||
      name->text.find(kDsml) != name->text.npos || name->text.find(kEos) != name->text.npos) {
    return absl::InvalidArgumentError(
        fmt::format("tools[{}]: a tool cannot be named \"{}\"", index, name->text));
  }
  JsonValue none;
  none.kind = JsonValue::Kind::kObject;
  const JsonValue* parameters = function->Find("parameters");
  if (parameters == nullptr || parameters->is_null()) parameters = &none;
  SchemaCompiler compiler(nodes, *parameters, fmt::format("tool \"{}\"", name->text));
  ASSIGN_OR_RETURN(const uint32_t call, compiler.Call(*parameters, "parameters"));
  tools->trie.Add(name->text + "\">\n", static_cast<int32_t>(tools->children.size()), 1);
  tools->children.push_back(call);
  return absl::OkStatus();
}

// The node that follows the opener of a block; nothing is added where there is no tool.
absl::StatusOr<uint32_t> AddBlock(const GrammarSpec& spec, GrammarNodes* nodes) {
  ASSIGN_OR_RETURN(const JsonValue list, ParseJson(spec.tools_json));
  if (!list.is_array()) return absl::InvalidArgumentError("tools: an array is wanted");
  GrammarNode tools, block;
  tools.kind = Kind::kTools;
  block.kind = Kind::kBlock;
  for (size_t i = 0; i < list.items.size(); ++i) {
    const JsonValue& tool = list.items[i];
    const JsonValue* function = tool.Find("function");
    const JsonValue* name = (function == nullptr ? &tool : function)->Find("name");
    if (spec.choice == CallChoice::kNamed && (name == nullptr || name->text != spec.tool)) continue;
    RETURN_IF_ERROR(AddTool(tool, i, nodes, &tools));
  }
  if (tools.children.empty()) {
    return absl::InvalidArgumentError(
        spec.choice == CallChoice::kNamed
            ? fmt::format("there is no tool \"{}\" that the answer could call", spec.tool)
            : "there is no tool that the answer could call");
  }
  block.item = nodes->Add(std::move(tools));
  block.min = 1;
  if (spec.max_calls > 0) block.max = static_cast<uint64_t>(spec.max_calls);
  if (spec.choice == CallChoice::kNamed) block.max = 1;
  return nodes->Add(std::move(block));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const AnswerGrammar>> AnswerGrammar::Compile(
    const GrammarSpec& spec) {
  GrammarNodes nodes;
  std::vector<uint32_t> start;  // after the reasoning, the bottom of the stack first
  if (!spec.response_schema_json.empty()) {
    ASSIGN_OR_RETURN(const JsonValue schema, ParseJson(spec.response_schema_json));
    SchemaCompiler compiler(&nodes, schema, "response schema");
    ASSIGN_OR_RETURN(const uint32_t value, compiler.Json(schema, "schema", 0));
    start = {nodes.end, value};
  } else {
    ASSIGN_OR_RETURN(const uint32_t block, AddBlock(spec, &nodes));
    start = {nodes.end, block};
    if (spec.choice == CallChoice::kAuto) {
      GrammarNode content;
      content.kind = Kind::kContent;
      content.children = {nodes.end, block, nodes.block_open};
      start = {nodes.Add(std::move(content))};
    } else {
      start.push_back(nodes.Literal(fmt::format("\n\n{}\n", kCallsOpen)));
    }
  }
  if (spec.mode == ThinkingMode::kThinking) {
    GrammarNode reasoning;
    reasoning.kind = Kind::kReasoning;
    reasoning.children = start;
    start = {nodes.Add(std::move(reasoning))};
  }
  std::string key =
      fmt::format("{} {} {} {}\n{}\n{}", static_cast<int>(spec.mode), static_cast<int>(spec.choice),
                  spec.max_calls, spec.tool, spec.tools_json, spec.response_schema_json);
  return MakeAutomaton(std::move(nodes), std::move(start), std::move(key));
}

}  // namespace reprise::engine
