#include "rollout/http/request_fields.h"

#include <cmath>

#include <fmt/format.h>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"

namespace reprise::rollout::http {
namespace {

using engine::JsonValue;

constexpr char kFieldPayload[] = "reprise.field";

}  // namespace

absl::Status WithField(absl::Status status, std::string_view field) {
  status.SetPayload(kFieldPayload, absl::Cord(absl::string_view(field.data(), field.size())));
  return status;
}

absl::Status BadField(std::string_view field, std::string_view what) {
  return WithField(absl::InvalidArgumentError(fmt::format("{}: {}", field, what)), field);
}

std::string FieldOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kFieldPayload);
  return payload.has_value() ? std::string(*payload) : "";
}

std::optional<int64_t> IntegerOf(const JsonValue& value) {
  if (value.kind != JsonValue::Kind::kNumber) return std::nullopt;
  int64_t whole = 0;
  if (absl::SimpleAtoi(value.text, &whole)) return whole;
  double number = 0;  // 1e3, 5.0
  constexpr double kExact = 9007199254740992.0;
  if (!absl::SimpleAtod(value.text, &number) || std::abs(number) > kExact ||
      number != std::floor(number))
    return std::nullopt;
  return static_cast<int64_t>(number);
}

const JsonValue* RequestFields::Find(std::string_view field) const {
  const JsonValue* value = object_.Find(field);
  return value == nullptr || value->is_null() ? nullptr : value;
}

void RequestFields::Fail(std::string_view field, std::string_view what) {
  if (status_.ok()) status_ = BadField(field, what);
}

void RequestFields::Fail(const absl::Status& error) {
  if (status_.ok()) status_ = error;
}

double RequestFields::Number(std::string_view field, double min, double max, double fallback) {
  const JsonValue* value = Find(field);
  if (value == nullptr) return fallback;
  double number = 0;
  if (value->kind != JsonValue::Kind::kNumber || !absl::SimpleAtod(value->text, &number) ||
      !(number >= min && number <= max)) {
    Fail(field, fmt::format("a number from {} to {} is wanted", min, max));
    return fallback;
  }
  return number;
}

std::optional<int64_t> RequestFields::Int(std::string_view field, int64_t min, int64_t max) {
  const JsonValue* value = Find(field);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = IntegerOf(*value);
  if (!number.has_value() || *number < min || *number > max) {
    Fail(field, fmt::format("a whole number from {} to {} is wanted", min, max));
    return std::nullopt;
  }
  return number;
}

bool RequestFields::Bool(std::string_view field, bool fallback) {
  const JsonValue* value = Find(field);
  if (value == nullptr) return fallback;
  if (value->kind != JsonValue::Kind::kBool) {
    Fail(field, "true or false is wanted");
    return fallback;
  }
  return value->boolean;
}

std::string RequestFields::String(std::string_view field, std::string_view fallback) {
  const JsonValue* value = Find(field);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) {
    Fail(field, "a string is wanted");
    return std::string(fallback);
  }
  return value->text;
}

std::vector<std::string> RequestFields::Strings(std::string_view field, size_t most) {
  const JsonValue* value = Find(field);
  std::vector<std::string> strings;
  if (value == nullptr) return strings;
  if (value->is_string()) {
    strings.push_back(value->text);
  } else if (value->is_array()) {
    for (const JsonValue& item : value->items) {
      if (!item.is_string()) Fail(field, "a string, or an array of strings, is wanted");
      strings.push_back(item.text);
    }
  } else {
    Fail(field, "a string, or an array of strings, is wanted");
  }
  if (strings.size() > most) Fail(field, fmt::format("at most {} strings are allowed", most));
  for (const std::string& string : strings) {
    if (string.empty()) Fail(field, "an empty string is not allowed");
  }
  return strings;
}

std::vector<int32_t> RequestFields::Ids(std::string_view field, int64_t max) {
  const JsonValue* value = Find(field);
  std::vector<int32_t> ids;
  if (value == nullptr) return ids;
  if (!value->is_array()) Fail(field, "an array of token ids is wanted");
  ids.reserve(value->items.size());
  for (const JsonValue& item : value->items) {
    const std::optional<int64_t> id = IntegerOf(item);
    if (!id.has_value() || *id < 0 || *id > max) {
      Fail(field, fmt::format("token ids are whole numbers from 0 to {}", max));
      return {};
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

}  // namespace reprise::rollout::http
