// JSON schemas to nodes of a grammar.
#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "absl/strings/numbers.h"
#include "base/status_macros.h"
#include "engine/chat_text.h"
#include "engine/grammar_nodes.h"

namespace reprise::engine {
namespace {

using Kind = GrammarNode::Kind;

constexpr int kSchemaDepthMax = 16;
constexpr int64_t kRangeMax = 4096;  // integers of a range that is written out

// Members of a schema that say nothing about values.
constexpr std::string_view kAnnotations[] = {
    "title",     "description", "default", "examples", "deprecated", "readOnly",
    "writeOnly", "$schema",     "$id",     "$comment", "$defs",      "definitions"};

const char* TypeName(const JsonValue& value) {
  switch (value.kind) {
    case JsonValue::Kind::kNull:
      return "null";
    case JsonValue::Kind::kBool:
      return "boolean";
    case JsonValue::Kind::kNumber:
      return value.text.find_first_of(".eEN") == std::string::npos ? "integer" : "number";
    case JsonValue::Kind::kString:
      return "string";
    case JsonValue::Kind::kArray:
      return "array";
    case JsonValue::Kind::kObject:
      return "object";
  }
  return "";
}

bool HasType(const JsonValue& value, const std::vector<std::string>& types) {
  const std::string type = TypeName(value);
  return types.empty() || std::find(types.begin(), types.end(), type) != types.end() ||
         (type == "integer" && std::find(types.begin(), types.end(), "number") != types.end());
}

// What no value and no name may hold: the parser would take it for markup.
bool HoldsMarkup(std::string_view text) {
  return text.find(kDsml) != text.npos || text.find(kEos) != text.npos;
}

}  // namespace

absl::Status SchemaCompiler::Error(const std::string& path, std::string_view what) const {
  return absl::InvalidArgumentError(fmt::format("{}: {}: {}", where_, path, what));
}

absl::Status SchemaCompiler::CheckKeywords(const JsonValue& schema, const std::string& path,
                                           const std::vector<std::string_view>& allowed) const {
  for (const auto& [key, value] : schema.members) {
    const auto is_key = [&key = key](std::string_view name) { return name == key; };
    if (std::any_of(std::begin(kAnnotations), std::end(kAnnotations), is_key) ||
        std::any_of(allowed.begin(), allowed.end(), is_key))
      continue;
    return Error(path, fmt::format("the keyword \"{}\" cannot be enforced here; leave it out, or "
                                   "leave the answer free",
                                   key));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> SchemaCompiler::Count(const JsonValue& schema, std::string_view keyword,
                                               const std::string& path, uint64_t fallback) const {
  const JsonValue* value = schema.Find(keyword);
  if (value == nullptr) return fallback;
  uint64_t count = 0;
  if (value->kind != JsonValue::Kind::kNumber || !absl::SimpleAtoi(value->text, &count) ||
      count > std::numeric_limits<uint32_t>::max())
    return Error(path, fmt::format("{} is no whole number from 0 on", keyword));
  return count;
}

absl::Status SchemaCompiler::Bounds(const JsonValue& schema, std::string_view min,
                                    std::string_view max, const std::string& path,
                                    GrammarNode* node) const {
  ASSIGN_OR_RETURN(node->min, Count(schema, min, path, 0));
  ASSIGN_OR_RETURN(node->max, Count(schema, max, path, kNoMax));
  if (node->min > node->max)
    return Error(path, fmt::format("{} {} is more than {} {}", min, node->min, max, node->max));
  return absl::OkStatus();
}

uint32_t SchemaCompiler::OneOf(std::vector<uint32_t> nodes) {
  if (nodes.size() == 1) return nodes[0];
  GrammarNode node;
  node.kind = Kind::kAnyOf;
  node.children = std::move(nodes);
  return nodes_->Add(std::move(node));
}

GrammarValue SchemaCompiler::JsonOnly(uint32_t node) const {
  GrammarValue value;
  value.json = {node};
  return value;
}

absl::StatusOr<uint32_t> SchemaCompiler::Json(const JsonValue& schema, const std::string& path,
                                              int depth) {
  ASSIGN_OR_RETURN(GrammarValue value, Value(schema, path, depth));
  value.json.insert(value.json.end(), value.quoted.begin(), value.quoted.end());
  return OneOf(std::move(value.json));
}

absl::StatusOr<GrammarValue> SchemaCompiler::Value(const JsonValue& schema, const std::string& path,
                                                   int depth) {
  GrammarValue free;
  free.raw = {nodes_->any_raw};
  free.json = nodes_->at(nodes_->any).children;
  std::erase(free.json, nodes_->any_string);
  free.quoted = {nodes_->any_string};
  if (schema.kind == JsonValue::Kind::kBool && schema.boolean) return free;
  if (!schema.is_object()) return Error(path, "a schema is an object");
  if (depth > kSchemaDepthMax)
    return Error(path, fmt::format("schemas are nested more than {} deep", kSchemaDepthMax));
  if (nodes_->size() > kGrammarNodesMax)
    return Error(path, fmt::format("the schemas need more than {} rules", kGrammarNodesMax));

  for (const char* keyword : {"anyOf", "allOf"}) {
    const JsonValue* schemas = schema.Find(keyword);
    if (schemas == nullptr) continue;
    RETURN_IF_ERROR(CheckKeywords(schema, path, {keyword}));
    if (!schemas->is_array() || schemas->items.empty())
      return Error(path, fmt::format("{} is no array of schemas", keyword));
    if (std::string_view(keyword) == "allOf" && schemas->items.size() > 1)
      return Error(path, "allOf of several schemas cannot be enforced here");
    return AnyOf(schemas->items, fmt::format("{}.{}", path, keyword), depth);
  }
  if (const JsonValue* reference = schema.Find("$ref")) {
    RETURN_IF_ERROR(CheckKeywords(schema, path, {"$ref"}));
    return Reference(reference->text, path, depth);
  }

  std::vector<std::string> types;
  if (const JsonValue* type = schema.Find("type")) {
    if (type->is_string()) types.push_back(type->text);
    for (const JsonValue& item : type->items) types.push_back(item.text);
    if (types.empty()) return Error(path, "type is neither a name nor a list of names");
  }
  if (const JsonValue* one = schema.Find("const")) {
    RETURN_IF_ERROR(CheckKeywords(schema, path, {"type", "const"}));
    return Values({*one}, types, path);
  }
  if (const JsonValue* values = schema.Find("enum")) {
    RETURN_IF_ERROR(CheckKeywords(schema, path, {"type", "enum"}));
    if (!values->is_array()) return Error(path, "enum is no array");
    return Values(values->items, types, path);
  }
  if (types.empty()) {
    if (schema.Find("properties") != nullptr) return OfType("object", schema, path, depth);
    RETURN_IF_ERROR(CheckKeywords(schema, path, {}));
    return free;
  }
  if (types.size() == 1) return OfType(types[0], schema, path, depth);
  // Of several types: each has the keywords that are about it.
  std::vector<JsonValue> schemas;
  for (const std::string& type : types) {
    JsonValue one = schema;
    for (auto& [key, value] : one.members) {
      if (key != "type") continue;
      value = JsonValue();
      value.kind = JsonValue::Kind::kString;
      value.text = type;
    }
    const auto about = [&](std::string_view key, std::string_view of) {
      return type != of && std::find(types.begin(), types.end(), of) != types.end() &&
             ((of == "string" && (key == "minLength" || key == "maxLength")) ||
              (of == "array" && (key == "items" || key == "minItems" || key == "maxItems")) ||
              (of == "object" &&
               (key == "properties" || key == "required" || key == "additionalProperties")) ||
              ((of == "integer" || of == "number") && (key == "minimum" || key == "maximum")));
    };
    std::erase_if(one.members, [&](const auto& member) {
      return about(member.first, "string") || about(member.first, "array") ||
             about(member.first, "object") ||
             (type != "number" && type != "integer" &&
              (about(member.first, "integer") || about(member.first, "number")));
    });
    schemas.push_back(std::move(one));
  }
  return AnyOf(schemas, path, depth);
}

absl::StatusOr<GrammarValue> SchemaCompiler::AnyOf(const std::vector<JsonValue>& schemas,
                                                   const std::string& path, int depth) {
  GrammarValue all;
  for (size_t i = 0; i < schemas.size(); ++i) {
    ASSIGN_OR_RETURN(GrammarValue one,
                     Value(schemas[i], fmt::format("{}[{}]", path, i), depth + 1));
    all.raw.insert(all.raw.end(), one.raw.begin(), one.raw.end());
    all.json.insert(all.json.end(), one.json.begin(), one.json.end());
    all.quoted.insert(all.quoted.end(), one.quoted.begin(), one.quoted.end());
  }
  return all;
}

absl::StatusOr<GrammarValue> SchemaCompiler::Reference(const std::string& name,
                                                       const std::string& path, int depth) {
  if (const auto known = references_.find(name); known != references_.end()) return known->second;
  if (std::find(open_references_.begin(), open_references_.end(), name) != open_references_.end())
    return Error(path, fmt::format("$ref \"{}\" leads back to itself, which cannot be enforced "
                                   "here",
                                   name));
  const JsonValue* target = nullptr;
  for (const std::string_view table : {"$defs", "definitions"}) {
    const std::string prefix = fmt::format("#/{}/", table);
    const JsonValue* definitions = root_.Find(table);
    if (definitions != nullptr && name.starts_with(prefix))
      target = definitions->Find(std::string_view(name).substr(prefix.size()));
  }
  if (target == nullptr)
    return Error(path, fmt::format("$ref \"{}\" leads nowhere; #/$defs/NAME and "
                                   "#/definitions/NAME do",
                                   name));
  open_references_.push_back(name);
  auto value = Value(*target, name, depth + 1);
  open_references_.pop_back();
  RETURN_IF_ERROR(value.status());
  references_[name] = *value;
  return value;
}

absl::StatusOr<GrammarValue> SchemaCompiler::Values(const std::vector<JsonValue>& values,
                                                    const std::vector<std::string>& types,
                                                    const std::string& path) {
  GrammarNode raw, quoted, json;
  raw.kind = quoted.kind = json.kind = Kind::kValues;
  bool strings = false, others = false;
  for (const JsonValue& value : values) {
    if (!HasType(value, types)) continue;
    const std::string text = DumpJson(value);
    if (HoldsMarkup(text)) return Error(path, fmt::format("{} holds the chat's markup", text));
    if (value.is_string()) {
      strings = true;
      raw.trie.Add(value.text, 0, 1);
      quoted.trie.Add(text, 0, 1);
    } else {
      others = true;
      json.trie.Add(text, 0, 1);
    }
  }
  if (!strings && !others) return Error(path, "no value is left of enum and type");
  GrammarValue out;
  if (strings) out.raw = {nodes_->Add(std::move(raw))};
  if (strings) out.quoted = {nodes_->Add(std::move(quoted))};
  if (others) out.json = {nodes_->Add(std::move(json))};
  return out;
}

absl::StatusOr<GrammarValue> SchemaCompiler::Number(const std::string& type,
                                                    const JsonValue& schema,
                                                    const std::string& path) {
  RETURN_IF_ERROR(CheckKeywords(schema, path, {"type", "minimum", "maximum"}));
  const JsonValue* least = schema.Find("minimum");
  const JsonValue* most = schema.Find("maximum");
  GrammarNode node;
  node.kind = Kind::kNumber;
  node.integer = type == "integer";
  if (least == nullptr && most == nullptr) return JsonOnly(nodes_->Add(std::move(node)));
  int64_t low = 0, high = 0;
  if (least == nullptr || !absl::SimpleAtoi(least->text, &low) ||
      (most != nullptr && !absl::SimpleAtoi(most->text, &high)))
    return Error(path, "a range can be enforced from a whole minimum on only");
  if (most == nullptr && (low == 0 || (low == 1 && node.integer))) {
    node.negative = false;
    node.zero = low == 0;
    return JsonOnly(nodes_->Add(std::move(node)));
  }
  if (most == nullptr || !node.integer || high < low ||
      static_cast<uint64_t>(high) - static_cast<uint64_t>(low) >= kRangeMax) {
    return Error(path, fmt::format("minimum and maximum can be enforced as 0 on, of integers as 1 "
                                   "on, and as ranges of up to {} integers",
                                   kRangeMax));
  }
  node.kind = Kind::kValues;
  for (int64_t value = low; value <= high; ++value) node.trie.Add(fmt::format("{}", value), 0, 1);
  return JsonOnly(nodes_->Add(std::move(node)));
}

absl::StatusOr<GrammarValue> SchemaCompiler::OfType(const std::string& type,
                                                    const JsonValue& schema,
                                                    const std::string& path, int depth) {
  if (type == "string") {
    RETURN_IF_ERROR(CheckKeywords(schema, path, {"type", "minLength", "maxLength"}));
    GrammarNode node;
    RETURN_IF_ERROR(Bounds(schema, "minLength", "maxLength", path, &node));
    GrammarValue value;
    node.kind = Kind::kRaw;
    value.raw = {nodes_->Add(node)};
    node.kind = Kind::kString;
    value.quoted = {nodes_->Add(std::move(node))};
    return value;
  }
  if (type == "number" || type == "integer") return Number(type, schema, path);
  if (type == "boolean" || type == "null") {
    RETURN_IF_ERROR(CheckKeywords(schema, path, {"type"}));
    GrammarNode node;
    node.kind = Kind::kValues;
    if (type == "null") {
      node.trie.Add("null", 0, 1);
    } else {
      node.trie.Add("true", 0, 1);
      node.trie.Add("false", 0, 1);
    }
    return JsonOnly(nodes_->Add(std::move(node)));
  }
  if (type == "array") {
    ASSIGN_OR_RETURN(const uint32_t node, Array(schema, path, depth));
    return JsonOnly(node);
  }
  if (type == "object") {
    ASSIGN_OR_RETURN(const uint32_t node, Object(schema, path, depth));
    return JsonOnly(node);
  }
  return Error(path, fmt::format("\"{}\" is no type", type));
}

absl::StatusOr<uint32_t> SchemaCompiler::Array(const JsonValue& schema, const std::string& path,
                                               int depth) {
  RETURN_IF_ERROR(CheckKeywords(schema, path, {"type", "items", "minItems", "maxItems"}));
  GrammarNode node;
  node.kind = Kind::kArray;
  RETURN_IF_ERROR(Bounds(schema, "minItems", "maxItems", path, &node));
  const JsonValue* items = schema.Find("items");
  node.item = nodes_->any;
  if (items != nullptr) {
    ASSIGN_OR_RETURN(node.item, Json(*items, path + ".items", depth + 1));
  }
  return nodes_->Add(std::move(node));
}

absl::StatusOr<std::vector<SchemaCompiler::Property>> SchemaCompiler::Properties(
    const JsonValue& schema, const std::string& path, GrammarNode* node) const {
  RETURN_IF_ERROR(
      CheckKeywords(schema, path, {"type", "properties", "required", "additionalProperties"}));
  std::vector<Property> properties;
  if (const JsonValue* declared = schema.Find("properties")) {
    if (!declared->is_object()) return Error(path, "properties is no object");
    for (const auto& [name, value] : declared->members) properties.push_back({name, &value});
  }
  if (properties.size() > kPropertiesMax) {
    return Error(path, fmt::format("{} properties; at most {} can be enforced", properties.size(),
                                   kPropertiesMax));
  }
  for (size_t i = 0; i < properties.size(); ++i) node->all |= uint64_t{1} << i;
  if (const JsonValue* required = schema.Find("required")) {
    if (!required->is_array()) return Error(path, "required is no array");
    for (const JsonValue& name : required->items) {
      const auto found = std::find_if(properties.begin(), properties.end(), [&](const auto& p) {
        return name.is_string() && p.name == name.text;
      });
      if (found == properties.end())
        return Error(path, fmt::format("\"{}\" is required and not in properties", name.text));
      node->required |= uint64_t{1} << (found - properties.begin());
    }
  }
  return properties;
}

absl::StatusOr<uint32_t> SchemaCompiler::Object(const JsonValue& schema, const std::string& path,
                                                int depth) {
  GrammarNode node, names;
  node.kind = Kind::kObject;
  names.kind = Kind::kNames;
  ASSIGN_OR_RETURN(const std::vector<Property> properties, Properties(schema, path, &node));
  const JsonValue* more = schema.Find("additionalProperties");
  const bool closed = more != nullptr && more->kind == JsonValue::Kind::kBool && !more->boolean;
  const bool declared = schema.Find("properties") != nullptr;
  if (!closed && (more != nullptr || !declared)) {
    if (declared && !properties.empty())
      return Error(path, "additionalProperties beside properties cannot be enforced here");
    node.kind = Kind::kMap;
    node.item = nodes_->any;
    if (more != nullptr) {
      ASSIGN_OR_RETURN(node.item, Json(*more, path + ".additionalProperties", depth + 1));
    }
    return nodes_->Add(std::move(node));
  }
  for (size_t i = 0; i < properties.size(); ++i) {
    const auto& [name, value] = properties[i];
    if (HoldsMarkup(name)) return Error(path, fmt::format("\"{}\" holds the chat's markup", name));
    ASSIGN_OR_RETURN(const uint32_t child,
                     Json(*value, fmt::format("{}.properties.{}", path, name), depth + 1));
    names.children.push_back(child);
    // After the quotation mark that opens the name.
    names.trie.Add(DumpJsonString(name).substr(1) + ":", static_cast<int32_t>(i), uint64_t{1} << i);
  }
  node.item = nodes_->Add(std::move(names));
  return nodes_->Add(std::move(node));
}

absl::StatusOr<uint32_t> SchemaCompiler::Call(const JsonValue& schema, const std::string& path) {
  if (!schema.is_object()) return Error(path, "a schema is an object");
  const JsonValue* type = schema.Find("type");
  if (type != nullptr && type->text != "object")
    return Error(path, "the parameters of a tool are of type object");
  GrammarNode node, names;
  node.kind = Kind::kCall;
  names.kind = Kind::kNames;
  ASSIGN_OR_RETURN(const std::vector<Property> properties, Properties(schema, path, &node));
  const JsonValue* more = schema.Find("additionalProperties");
  if (more != nullptr && !(more->kind == JsonValue::Kind::kBool && !more->boolean))
    return Error(path, "additionalProperties of a tool's own parameters cannot be enforced here");
  for (size_t i = 0; i < properties.size(); ++i) {
    const auto& [name, value] = properties[i];
    if (HoldsMarkup(name) || name.find('"') != name.npos)
      return Error(path, fmt::format("a parameter cannot be named \"{}\"", name));
    ASSIGN_OR_RETURN(const GrammarValue child,
                     Value(*value, fmt::format("{}.properties.{}", path, name), 0));
    const uint64_t bit = uint64_t{1} << i;
    for (const bool string : {true, false}) {
      const std::vector<uint32_t>& nodes = string ? child.raw : child.json;
      if (nodes.empty()) continue;
      names.trie.Add(fmt::format("{}\" string=\"{}\">", name, string),
                     static_cast<int32_t>(names.children.size()), bit);
      names.children.push_back(OneOf(nodes));
    }
  }
  node.item = nodes_->Add(std::move(names));
  return nodes_->Add(std::move(node));
}

}  // namespace reprise::engine
