// Reads the JSON object of a request field by field: a field that is missing or null has its
// default, the first error sticks and names its field, and fields that nobody asks for are left
// alone, because clients send many that mean nothing here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/json.h"

namespace reprise::rollout::http {

// INVALID_ARGUMENT about one field of a request, which FieldOf tells.
absl::Status BadField(std::string_view field, std::string_view what);
// `status` said to be about a field.
absl::Status WithField(absl::Status status, std::string_view field);
// The field that an error is about; "" when none.
std::string FieldOf(const absl::Status& status);

class RequestFields {
 public:
  // `object` outlives this.
  explicit RequestFields(const engine::JsonValue& object) : object_(object) {}

  // nullptr when missing or null.
  const engine::JsonValue* Find(std::string_view field) const;
  bool Has(std::string_view field) const { return Find(field) != nullptr; }

  double Number(std::string_view field, double min, double max, double fallback);
  std::optional<int64_t> Int(std::string_view field, int64_t min, int64_t max);
  int64_t Int(std::string_view field, int64_t min, int64_t max, int64_t fallback) {
    return Int(field, min, max).value_or(fallback);
  }
  bool Bool(std::string_view field, bool fallback);
  std::string String(std::string_view field, std::string_view fallback);
  // A string, or an array of at most `most` strings.
  std::vector<std::string> Strings(std::string_view field, size_t most);
  // An array of integers, each from 0 to `max`.
  std::vector<int32_t> Ids(std::string_view field, int64_t max);

  void Fail(std::string_view field, std::string_view what);
  void Fail(const absl::Status& error);  // as BadField makes it
  const absl::Status& status() const { return status_; }

 private:
  const engine::JsonValue& object_;
  absl::Status status_;
};

// The integer that a JSON number is; nullopt for any other value.
std::optional<int64_t> IntegerOf(const engine::JsonValue& value);

}  // namespace reprise::rollout::http
