#include "rollout/template.h"

#include <fmt/format.h>

namespace reprise::rollout {

absl::StatusOr<Template> Template::Parse(std::string_view text) {
  Template out;
  std::string literal;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c != '{' && c != '}') {
      literal += c;
      continue;
    }
    if (i + 1 < text.size() && text[i + 1] == c) {
      literal += c;
      ++i;
      continue;
    }
    size_t end = c == '{' ? text.find('}', i) : text.npos;
    if (end == text.npos || end == i + 1) {
      return absl::InvalidArgumentError(fmt::format(
          "has a lone '{}' at byte {}, allowed: {{name}} for an argument, {{{{ and }}}} for braces",
          c, i));
    }
    if (!literal.empty()) out.parts_.push_back({std::move(literal), false});
    literal.clear();
    out.parts_.push_back({std::string(text.substr(i + 1, end - i - 1)), true});
    i = end;
  }
  if (!literal.empty()) out.parts_.push_back({std::move(literal), false});
  return out;
}

std::vector<std::string> Template::names() const {
  std::vector<std::string> out;
  for (const Part& part : parts_) {
    if (part.is_name) out.push_back(part.text);
  }
  return out;
}

std::string Template::Fill(const std::map<std::string, std::string>& values) const {
  std::string out;
  for (const Part& part : parts_) {
    if (!part.is_name) {
      out += part.text;
    } else if (auto value = values.find(part.text); value != values.end()) {
      out += value->second;
    }
  }
  return out;
}

}  // namespace reprise::rollout
