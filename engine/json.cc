#include "engine/json.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstdlib>

#include "base/status_macros.h"

namespace reprise::engine {
namespace {

constexpr int kMaxDepth = 200;

void AppendUtf8(uint32_t code, std::string* out) {
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out->push_back(static_cast<char>(0xc0 | (code >> 6)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3f)));
  } else if (code < 0x10000) {
    out->push_back(static_cast<char>(0xe0 | (code >> 12)));
    out->push_back(static_cast<char>(0x80 | ((code >> 6) & 0x3f)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3f)));
  } else {
    out->push_back(static_cast<char>(0xf0 | (code >> 18)));
    out->push_back(static_cast<char>(0x80 | ((code >> 12) & 0x3f)));
    out->push_back(static_cast<char>(0x80 | ((code >> 6) & 0x3f)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3f)));
  }
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  absl::StatusOr<JsonValue> Parse() {
    ASSIGN_OR_RETURN(JsonValue value, Value(0));
    SkipSpace();
    if (at_ != text_.size()) return Error("text after the value");
    return value;
  }

 private:
  absl::Status Error(std::string_view what) const {
    return absl::InvalidArgumentError(fmt::format("not JSON at byte {}: {}", at_, what));
  }
  void SkipSpace() {
    while (at_ < text_.size() &&
           std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos)
      ++at_;
  }
  bool Take(std::string_view token) {
    if (text_.substr(at_, token.size()) != token) return false;
    at_ += token.size();
    return true;
  }

  absl::StatusOr<JsonValue> Value(int depth) {
    if (depth > kMaxDepth) return Error("nested too deeply");
    SkipSpace();
    JsonValue value;
    if (at_ == text_.size()) return Error("unexpected end");
    switch (text_[at_]) {
      case '{':
        return Object(depth);
      case '[':
        return Array(depth);
      case '"': {
        value.kind = JsonValue::Kind::kString;
        ASSIGN_OR_RETURN(value.text, String());
        return value;
      }
      default:
        break;
    }
    if (Take("null")) return value;
    if (Take("true") || Take("false")) {
      value.kind = JsonValue::Kind::kBool;
      value.boolean = text_[at_ - 2] == 'u';
      return value;
    }
    value.kind = JsonValue::Kind::kNumber;
    for (std::string_view name : {"NaN", "Infinity", "-Infinity"}) {
      if (Take(name)) {
        value.text = std::string(name);
        return value;
      }
    }
    return Number();
  }

  absl::StatusOr<JsonValue> Number() {
    const size_t begin = at_;
    auto digits = [&] {
      const size_t from = at_;
      while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
      return at_ - from;
    };
    Take("-");
    const size_t first = at_;
    const size_t whole = digits();
    if (whole == 0 || (whole > 1 && text_[first] == '0')) return Error("expected a value");
    if (at_ + 1 < text_.size() && text_[at_] == '.' &&
        std::isdigit(static_cast<unsigned char>(text_[at_ + 1]))) {
      ++at_;
      digits();
    }
    if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
      ++at_;
      if (at_ < text_.size() && (text_[at_] == '+' || text_[at_] == '-')) ++at_;
      if (digits() == 0) return Error("an exponent without digits");
    }
    JsonValue value;
    value.kind = JsonValue::Kind::kNumber;
    value.text = std::string(text_.substr(begin, at_ - begin));
    return value;
  }

  absl::StatusOr<uint32_t> Hex4() {
    uint32_t code = 0;
    if (at_ + 4 > text_.size()) return Error("a short \\u escape");
    for (int i = 0; i < 4; ++i) {
      const char c = text_[at_++];
      if (!std::isxdigit(static_cast<unsigned char>(c))) return Error("a bad \\u escape");
      code = code * 16 + static_cast<uint32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return code;
  }

  absl::Status Escape(std::string* out) {
    if (at_ == text_.size()) return Error("an unfinished escape");
    const char c = text_[at_++];
    static constexpr std::string_view kFrom = "\"\\/bfnrt";
    static constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
    if (size_t index = kFrom.find(c); index != std::string_view::npos) {
      out->push_back(kTo[index]);
      return absl::OkStatus();
    }
    if (c != 'u') return Error("an unknown escape");
    ASSIGN_OR_RETURN(uint32_t code, Hex4());
    if (code >= 0xd800 && code < 0xdc00 && text_.substr(at_, 2) == "\\u") {
      const size_t back = at_;
      at_ += 2;
      ASSIGN_OR_RETURN(uint32_t low, Hex4());
      if (low >= 0xdc00 && low < 0xe000) {
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
      } else {
        at_ = back;
      }
    }
    AppendUtf8(code >= 0xd800 && code < 0xe000 ? 0xfffd : code,
               out);  // a lone surrogate is no text
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> String() {
    ++at_;
    std::string out;
    while (at_ < text_.size()) {
      const char c = text_[at_++];
      if (c == '"') return out;
      if (static_cast<unsigned char>(c) < 0x20) return Error("a control character in a string");
      if (c == '\\') {
        RETURN_IF_ERROR(Escape(&out));
      } else {
        out.push_back(c);
      }
    }
    return Error("a string without its end");
  }

  absl::StatusOr<JsonValue> Array(int depth) {
    ++at_;
    JsonValue array;
    array.kind = JsonValue::Kind::kArray;
    SkipSpace();
    if (Take("]")) return array;
    while (true) {
      ASSIGN_OR_RETURN(JsonValue item, Value(depth + 1));
      array.items.push_back(std::move(item));
      SkipSpace();
      if (Take("]")) return array;
      if (!Take(",")) return Error("expected , or ]");
    }
  }

  absl::StatusOr<JsonValue> Object(int depth) {
    ++at_;
    JsonValue object;
    object.kind = JsonValue::Kind::kObject;
    SkipSpace();
    if (Take("}")) return object;
    while (true) {
      SkipSpace();
      if (at_ == text_.size() || text_[at_] != '"') return Error("expected a member name");
      ASSIGN_OR_RETURN(std::string key, String());
      SkipSpace();
      if (!Take(":")) return Error("expected :");
      ASSIGN_OR_RETURN(JsonValue value, Value(depth + 1));
      auto it = object.members.begin();
      while (it != object.members.end() && it->first != key) ++it;
      if (it != object.members.end()) {
        it->second = std::move(value);
      } else {
        object.members.emplace_back(std::move(key), std::move(value));
      }
      SkipSpace();
      if (Take("}")) return object;
      if (!Take(",")) return Error("expected , or }");
    }
  }

  std::string_view text_;
  size_t at_ = 0;
};

// Python's repr of a float: shortest digits that read back, fixed from 1e-4 up to 1e16, else
// scientific.
std::string FloatRepr(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  char buffer[64];
  auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  std::string_view text(buffer, static_cast<size_t>(end.ptr - buffer));
  const size_t mark = text.find('e');
  const int exponent = std::atoi(std::string(text.substr(mark + 1)).c_str());
  std::string sign = text[0] == '-' ? "-" : "";
  std::string digits;
  for (char c : text.substr(0, mark)) {
    if (c >= '0' && c <= '9') digits.push_back(c);
  }
  if (exponent < -4 || exponent >= 16) {
    std::string mantissa = digits.substr(0, 1);
    if (digits.size() > 1) mantissa += "." + digits.substr(1);
    return fmt::format("{}{}e{}{:02}", sign, mantissa, exponent < 0 ? '-' : '+',
                       std::abs(exponent));
  }
  if (exponent < 0)
    return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string NumberText(const std::string& written) {
  if (written == "-0") return "0";
  if (written.find_first_of(".eEN") == std::string::npos && written.find('I') == std::string::npos)
    return written;
  if (written == "NaN") return written;
  return FloatRepr(std::strtod(written.c_str(), nullptr));
}

void Dump(const JsonValue& value, std::string* out) {
  switch (value.kind) {
    case JsonValue::Kind::kNull:
      *out += "null";
      return;
    case JsonValue::Kind::kBool:
      *out += value.boolean ? "true" : "false";
      return;
    case JsonValue::Kind::kNumber:
      *out += NumberText(value.text);
      return;
    case JsonValue::Kind::kString:
      *out += DumpJsonString(value.text);
      return;
    case JsonValue::Kind::kArray:
      *out += "[";
      for (size_t i = 0; i < value.items.size(); ++i) {
        if (i > 0) *out += ", ";
        Dump(value.items[i], out);
      }
      *out += "]";
      return;
    case JsonValue::Kind::kObject:
      *out += "{";
      for (size_t i = 0; i < value.members.size(); ++i) {
        if (i > 0) *out += ", ";
        *out += DumpJsonString(value.members[i].first) + ": ";
        Dump(value.members[i].second, out);
      }
      *out += "}";
      return;
  }
}

}  // namespace

JsonValue::JsonValue() = default;
JsonValue::~JsonValue() = default;
JsonValue::JsonValue(const JsonValue&) = default;
JsonValue::JsonValue(JsonValue&&) noexcept = default;
JsonValue& JsonValue::operator=(const JsonValue&) = default;
JsonValue& JsonValue::operator=(JsonValue&&) noexcept = default;

bool JsonValue::truthy() const {
  switch (kind) {
    case Kind::kNull:
      return false;
    case Kind::kBool:
      return boolean;
    case Kind::kNumber:
      return std::strtod(text.c_str(), nullptr) != 0;
    case Kind::kString:
      return !text.empty();
    case Kind::kArray:
      return !items.empty();
    case Kind::kObject:
      return !members.empty();
  }
  return false;
}

const JsonValue* JsonValue::Find(std::string_view key) const {
  for (const auto& [name, value] : members) {
    if (name == key) return &value;
  }
  return nullptr;
}

absl::StatusOr<JsonValue> ParseJson(std::string_view text) { return Parser(text).Parse(); }

std::string DumpJsonString(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
        } else {
          out.push_back(c);
        }
    }
  }
  return out + "\"";
}

std::string DumpJson(const JsonValue& value) {
  std::string out;
  Dump(value, &out);
  return out;
}

}  // namespace reprise::engine
