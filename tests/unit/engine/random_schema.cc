#include "tests/unit/engine/random_schema.h"

#include <algorithm>

namespace reprise::engine {
namespace {

constexpr const char* kPieces[] = {"a",  "Z9", " ", "\n", "\"", "\\",         "<",
                                   "</", "{",  "é", "漢", "😀",  "parameter>", "true"};

size_t Characters(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

bool IsOfType(const OrderedJson& value, const std::string& type) {
  if (type == "string") return value.is_string();
  if (type == "integer") return value.is_number_integer();
  if (type == "number") return value.is_number();
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  return type == "array" ? value.is_array() : value.is_object();
}

std::string ObjectMisfit(const OrderedJson& schema, const OrderedJson& value) {
  const OrderedJson properties = schema.value("properties", OrderedJson::object());
  for (const OrderedJson& name : schema.value("required", OrderedJson::array())) {
    if (!value.contains(name)) return "no " + name.get<std::string>();
  }
  for (const auto& [name, item] : value.items()) {
    const bool known = properties.contains(name);
    if (!known && schema.contains("properties")) return name + " is not declared";
    if (!known && !schema.contains("additionalProperties")) continue;
    const std::string misfit =
        Misfit(known ? properties[name] : schema["additionalProperties"], item);
    if (!misfit.empty()) return name + ": " + misfit;
  }
  return "";
}

}  // namespace

std::string Misfit(const OrderedJson& schema, const OrderedJson& value) {
  if (schema.contains("anyOf")) {
    const auto& all = schema["anyOf"];
    const bool fits = std::any_of(
        all.begin(), all.end(), [&](const OrderedJson& one) { return Misfit(one, value).empty(); });
    return fits ? "" : "none of anyOf: " + value.dump();
  }
  if (schema.contains("const") && value != schema["const"]) return "not the constant";
  if (schema.contains("enum")) {
    const auto& all = schema["enum"];
    if (std::find(all.begin(), all.end(), value) == all.end()) return "not in enum";
  }
  if (!schema.contains("type")) return "";
  const std::string type = schema["type"];
  if (!IsOfType(value, type)) return value.dump() + " is no " + type;
  if (type == "string") {
    const size_t length = Characters(value);
    if (length < schema.value("minLength", size_t{0})) return "too short";
    if (length > schema.value("maxLength", SIZE_MAX)) return "too long";
  }
  if (schema.contains("minimum") && value < schema["minimum"]) return "too small";
  if (schema.contains("maximum") && value > schema["maximum"]) return "too large";
  if (type == "object") return ObjectMisfit(schema, value);
  if (type != "array") return "";
  if (value.size() < schema.value("minItems", size_t{0})) return "too few items";
  if (value.size() > schema.value("maxItems", SIZE_MAX)) return "too many items";
  for (const OrderedJson& item : value) {
    if (!schema.contains("items")) break;
    if (const std::string misfit = Misfit(schema["items"], item); !misfit.empty())
      return "[]: " + misfit;
  }
  return "";
}

std::string RandomSchema::Text(size_t min, size_t max) {
  std::string text;
  const size_t wanted = min + Below(std::min<size_t>(max - min, 6) + 1);
  while (Characters(text) < wanted) {
    const std::string piece = kPieces[Below(std::size(kPieces))];
    if (Characters(text) + Characters(piece) <= max) text += piece;
  }
  return text;
}

OrderedJson RandomSchema::Object(int depth) {
  OrderedJson schema = {{"type", "object"}, {"properties", OrderedJson::object()}};
  OrderedJson required = OrderedJson::array();
  // Names that begin with each other, and one that needs escapes in JSON.
  const char* names[] = {"a", "ab", "abc", "path", "long name", "é", "x=y"};
  for (const char* name : names) {
    if (Below(2) == 0) continue;
    schema["properties"][name] = Schema(depth + 1);
    if (Below(2) == 0) required.push_back(name);
  }
  if (!required.empty()) schema["required"] = required;
  if (Below(3) == 0) schema["additionalProperties"] = false;
  return schema;
}

OrderedJson RandomSchema::Schema(int depth) {
  const size_t kind = Below(depth < 3 ? 14 : 10);
  switch (kind) {
    case 0:
    case 1: {
      OrderedJson schema = {{"type", "string"}};
      const size_t min = Below(4);
      if (Below(2) == 0) schema["minLength"] = min;
      if (Below(3) != 0) schema["maxLength"] = min + Below(9);
      return schema;
    }
    case 2:
      return {{"type", "integer"}};
    case 3:
      return {{"type", "number"}};
    case 4:
      return {{"type", "boolean"}};
    case 5:
      return {{"type", "null"}};
    case 6:
      return {{"enum", {"a", "ab", "a</b", "", 7, 72, nullptr, {1, 2}}}};
    case 7:
      return {{"type", "string"}, {"enum", {"read", "read more", "write"}}};
    case 8:
      return {{"type", "integer"}, {"minimum", -3}, {"maximum", 12}};
    case 9:
      return {{"description", "anything"}};
    case 10: {
      OrderedJson schema = {{"type", "array"}, {"items", Schema(depth + 1)}};
      const size_t min = Below(3);
      if (Below(2) == 0) schema["minItems"] = min;
      if (Below(2) == 0) schema["maxItems"] = min + Below(3);
      return schema;
    }
    case 11:
      return Object(depth);
    case 12:
      return {{"type", "object"}, {"additionalProperties", Schema(depth + 1)}};
    default:
      return {{"anyOf", {Schema(depth + 1), {{"type", "null"}}, Schema(depth + 1)}}};
  }
}

OrderedJson RandomSchema::Tools() {
  OrderedJson tools = OrderedJson::array();
  for (const char* name : {"sh", "sh_more", "edit file"}) {
    if (!tools.empty() && Below(2) == 0) continue;
    tools.push_back(
        {{"type", "function"}, {"function", {{"name", name}, {"parameters", Object(0)}}}});
  }
  return tools;
}

OrderedJson RandomSchema::Value(const OrderedJson& schema) {
  if (schema.contains("anyOf")) return Value(schema["anyOf"][Below(schema["anyOf"].size())]);
  if (schema.contains("enum")) return schema["enum"][Below(schema["enum"].size())];
  if (!schema.contains("type"))
    return Value(Below(2) == 0 ? OrderedJson{{"type", "object"}} : OrderedJson{{"type", "string"}});
  const std::string type = schema["type"];
  if (type == "string") {
    const size_t min = schema.value("minLength", size_t{0});
    return Text(min, schema.value("maxLength", min + 40));
  }
  if (type == "integer")
    return schema.contains("minimum") ? OrderedJson(static_cast<int>(Below(16)) - 3)
                                      : OrderedJson(static_cast<int64_t>(random_() >> 20) - 1000);
  if (type == "number") return static_cast<double>(Below(1000)) / 8 - 20;
  if (type == "boolean") return Below(2) == 0;
  if (type == "null") return nullptr;
  if (type == "array") {
    OrderedJson value = OrderedJson::array();
    const size_t min = schema.value("minItems", size_t{0});
    const size_t count = min + Below(schema.value("maxItems", min + 2) - min + 1);
    while (value.size() < count) value.push_back(Value(schema["items"]));
    return value;
  }
  OrderedJson value = OrderedJson::object();
  const OrderedJson required = schema.value("required", OrderedJson::array());
  const OrderedJson properties = schema.value("properties", OrderedJson::object());
  std::vector<std::string> names;
  for (const auto& [name, item] : properties.items()) names.push_back(name);
  std::shuffle(names.begin(), names.end(), random_);
  for (const std::string& name : names) {
    const bool must = std::find(required.begin(), required.end(), name) != required.end();
    if (must || Below(2) == 0) value[name] = Value(properties[name]);
  }
  if (!schema.contains("properties"))
    value["any \"key\""] = schema.contains("additionalProperties")
                               ? Value(schema["additionalProperties"])
                               : OrderedJson({1, {{"b", nullptr}}});
  return value;
}

}  // namespace reprise::engine
