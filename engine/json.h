// JSON as prompts need it: members in order, numbers kept as written, and printed the way Python's
// json.dumps prints them. (General-purpose libraries turn long integers into doubles and lose what
// the model should see.)
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace reprise::engine {

struct JsonValue {
  // Not here: `members` holds values of this very type, which ends below.
  JsonValue();
  ~JsonValue();
  JsonValue(const JsonValue&);
  JsonValue(JsonValue&&) noexcept;
  JsonValue& operator=(const JsonValue&);
  JsonValue& operator=(JsonValue&&) noexcept;

  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject } kind = Kind::kNull;
  bool boolean = false;
  std::string text;  // kString: decoded UTF-8; kNumber: as written
  std::vector<JsonValue> items;
  std::vector<std::pair<std::string, JsonValue>>
      members;  // last value of a repeated key, at its first place

  bool is_string() const { return kind == Kind::kString; }
  bool is_array() const { return kind == Kind::kArray; }
  bool is_object() const { return kind == Kind::kObject; }
  bool is_null() const { return kind == Kind::kNull; }
  // Not null, not false, not "", not [] and not {}: what Python calls true.
  bool truthy() const;
  // Member of an object; nullptr when absent or when this is no object.
  const JsonValue* Find(std::string_view key) const;
};

// Takes what Python's json.loads takes (NaN and Infinity too). INVALID_ARGUMENT with the byte
// offset.
absl::StatusOr<JsonValue> ParseJson(std::string_view text);

// json.dumps(value, ensure_ascii=False): ", " and ": ", floats by repr.
std::string DumpJson(const JsonValue& value);
// One JSON string with its quotes.
std::string DumpJsonString(std::string_view text);

}  // namespace reprise::engine
