#include "rollout/fields.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include <toml++/toml.h>

#include "base/status_macros.h"

namespace reprise::rollout {
namespace {

// How a value is shown in an error: its JSON text, cut to stay on one line.
std::string Shown(const Json& value) {
  if (value.is_number_float()) return fmt::format("{}", value.get<double>());  // JSON has no NaN
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  constexpr size_t kMaxShown = 60;
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
  return text;
}

// Nesting of brackets outside strings; cheaper and safer than letting a recursive parser find out.
bool DepthOk(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxJsonDepth) return false;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return true;
}

absl::StatusOr<Json> FromToml(const toml::node& node, const std::string& where) {
  if (const toml::table* table = node.as_table()) {
    Json out = Json::object();
    for (const auto& [key, value] : *table) {
      ASSIGN_OR_RETURN(out[std::string(key.str())], FromToml(value, where));
    }
    return out;
  }
  if (const toml::array* array = node.as_array()) {
    Json out = Json::array();
    for (const toml::node& value : *array) {
      ASSIGN_OR_RETURN(Json item, FromToml(value, where));
      out.push_back(std::move(item));
    }
    return out;
  }
  if (auto text = node.value_exact<std::string>()) return Json(*text);
  if (auto number = node.value_exact<int64_t>()) return Json(*number);
  if (auto number = node.value_exact<double>()) return Json(*number);
  if (auto flag = node.value_exact<bool>()) return Json(*flag);
  return absl::InvalidArgumentError(
      fmt::format("{}:{}: dates and times are not used in this file, write a string", where,
                  node.source().begin.line));
}

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text) {
  if (!DepthOk(text)) {
    return absl::InvalidArgumentError(
        fmt::format("JSON is nested deeper than {} levels", kMaxJsonDepth));
  }
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 5: ..." -> what follows the
    // bracket.
    std::string_view what = error.what();
    if (size_t end = what.find("] "); end != what.npos) what.remove_prefix(end + 2);
    return absl::InvalidArgumentError(fmt::format("not valid JSON: {}", what));
  }
}

absl::StatusOr<Json> ParseToml(std::string_view text, const std::string& where) {
  toml::table table;
  try {
    table = toml::parse(text);
  } catch (const toml::parse_error& error) {
    return absl::InvalidArgumentError(fmt::format("{}:{}:{}: {}", where, error.source().begin.line,
                                                  error.source().begin.column,
                                                  error.description()));
  }
  return FromToml(table, where);
}

Fields::Fields(const Json& object, std::string where, std::string path)
    : object_(&object), where_(std::move(where)), path_(std::move(path)) {
  if (!object.is_object()) Fail("", fmt::format("is {}, allowed: a table", Shown(object)));
}

std::string Fields::Name(const std::string& key) const {
  if (path_.empty()) return key;
  return key.empty() ? path_ : path_ + "." + key;
}

void Fields::Fail(const std::string& key, const std::string& what) {
  if (!error_.ok()) return;
  std::string name = Name(key);
  error_ = absl::InvalidArgumentError(
      fmt::format("{}: {}{}{}", where_, name, name.empty() ? "" : " ", what));
}

const Json* Fields::Take(const std::string& key) {
  asked_.push_back(key);
  if (!object_->is_object()) return nullptr;
  auto found = object_->find(key);
  return found == object_->end() ? nullptr : &*found;
}

bool Fields::Has(const std::string& key) const {
  return object_->is_object() && object_->contains(key);
}

const Json* Fields::Raw(const std::string& key) { return Take(key); }

const Json* Fields::Typed(const std::string& key, bool required, bool (*is)(const Json&),
                          const char* type) {
  const Json* value = Take(key);
  if (value == nullptr) {
    if (required) Fail(key, fmt::format("is missing, allowed: {}", type));
    return nullptr;
  }
  if (is(*value)) return value;
  Fail(key, fmt::format("is {}, allowed: {}", Shown(*value), type));
  return nullptr;
}

std::string Fields::String(const std::string& key, std::optional<std::string> fallback) {
  const Json* value = Typed(
      key, !fallback, [](const Json& v) { return v.is_string(); }, "a string");
  return value ? value->get<std::string>() : fallback.value_or("");
}

std::string Fields::OneOf(const std::string& key, const std::vector<std::string>& allowed,
                          std::optional<std::string> fallback) {
  std::string value = String(key, std::move(fallback));
  if (error_.ok() && std::find(allowed.begin(), allowed.end(), value) == allowed.end()) {
    Fail(key, fmt::format("is \"{}\", allowed: \"{}\"", value, fmt::join(allowed, "\", \"")));
  }
  return value;
}

int64_t Fields::Int(const std::string& key, int64_t min, int64_t max,
                    std::optional<int64_t> fallback) {
  std::string allowed = fmt::format("a whole number {}..{}", min, max);
  const Json* value = Typed(
      key, !fallback,
      [](const Json& v) {
        return v.is_number_integer() &&
               (!v.is_number_unsigned() || v.get<uint64_t>() <= uint64_t{INT64_MAX});
      },
      allowed.c_str());
  if (value == nullptr) return fallback.value_or(min);
  int64_t number = value->get<int64_t>();
  if (number < min || number > max) Fail(key, fmt::format("is {}, allowed: {}", number, allowed));
  return number;
}

double Fields::Number(const std::string& key, double min, double max, bool open_min,
                      double fallback) {
  std::string allowed = fmt::format("a number {} {} and <= {}", open_min ? ">" : ">=", min, max);
  const Json* value = Typed(
      key, false, [](const Json& v) { return v.is_number(); }, allowed.c_str());
  if (value == nullptr) return fallback;
  double number = value->get<double>();
  bool in_range = number <= max && (open_min ? number > min : number >= min);
  if (!in_range) Fail(key, fmt::format("is {}, allowed: {}", Shown(*value), allowed));
  return number;
}

bool Fields::Bool(const std::string& key, bool fallback) {
  const Json* value = Typed(
      key, false, [](const Json& v) { return v.is_boolean(); }, "true or false");
  return value ? value->get<bool>() : fallback;
}

std::vector<std::string> Fields::Strings(const std::string& key, size_t min_count, bool required) {
  std::string allowed = fmt::format("an array of at least {} strings", min_count);
  const Json* value = Typed(
      key, required,
      [](const Json& v) {
        return v.is_array() &&
               std::all_of(v.begin(), v.end(), [](const Json& item) { return item.is_string(); });
      },
      allowed.c_str());
  if (value == nullptr) return {};
  if (value->size() < min_count) {
    Fail(key, fmt::format("is {}, allowed: {}", Shown(*value), allowed));
  }
  return value->get<std::vector<std::string>>();
}

std::vector<std::pair<std::string, std::string>> Fields::StringMap(const std::string& key) {
  const Json* value = Typed(
      key, false,
      [](const Json& v) {
        return v.is_object() &&
               std::all_of(v.begin(), v.end(), [](const Json& item) { return item.is_string(); });
      },
      "a table of strings");
  std::vector<std::pair<std::string, std::string>> out;
  if (value == nullptr) return out;
  for (const auto& [name, item] : value->items()) out.emplace_back(name, item.get<std::string>());
  return out;
}

std::optional<Fields> Fields::Table(const std::string& key) {
  const Json* value = Typed(
      key, false, [](const Json& v) { return v.is_object(); }, "a table");
  if (value == nullptr) return std::nullopt;
  return Fields(*value, where_, Name(key));
}

std::vector<Fields> Fields::Tables(const std::string& key) {
  const Json* value = Typed(
      key, false, [](const Json& v) { return v.is_array(); }, "an array of tables");
  std::vector<Fields> out;
  if (value == nullptr) return out;
  for (size_t i = 0; i < value->size(); ++i) {
    out.emplace_back((*value)[i], where_, fmt::format("{}[{}]", Name(key), i));
  }
  return out;
}

absl::Status Fields::Finish() {
  RETURN_IF_ERROR(error_);
  for (const auto& [key, value] : object_->items()) {
    if (std::find(asked_.begin(), asked_.end(), key) == asked_.end()) {
      return absl::InvalidArgumentError(fmt::format("{}: unknown key \"{}\", allowed: {}", where_,
                                                    Name(key), fmt::join(asked_, ", ")));
    }
  }
  return absl::OkStatus();
}

}  // namespace reprise::rollout
