#include "http/target.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/status_macros.h"

namespace reprise::http {
namespace {

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

absl::StatusOr<std::string> PercentDecode(std::string_view text, bool plus) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      const int high = i + 2 < text.size() ? HexDigit(text[i + 1]) : -1;
      const int low = i + 2 < text.size() ? HexDigit(text[i + 2]) : -1;
      if (high < 0 || low < 0)
        return absl::InvalidArgumentError("the request target has a bad % escape");
      c = static_cast<char>(high * 16 + low);
      i += 2;
    } else if (c == '+' && plus) {
      c = ' ';
    }
    if (c == '\0') return absl::InvalidArgumentError("the request target has a NUL byte");
    out += c;
  }
  return out;
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ParseQuery(std::string_view text) {
  std::vector<std::pair<std::string, std::string>> query;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('&', at), text.size());
    const std::string_view pair = text.substr(at, end - at);
    at = end + 1;
    if (pair.empty()) continue;
    if (query.size() >= kQueryParamsMax) {
      return absl::InvalidArgumentError(
          fmt::format("the query has more than {} parameters", kQueryParamsMax));
    }
    const size_t equal = std::min(pair.find('='), pair.size());
    ASSIGN_OR_RETURN(std::string name, PercentDecode(pair.substr(0, equal), /*plus=*/true));
    const std::string_view rest = equal < pair.size() ? pair.substr(equal + 1) : "";
    ASSIGN_OR_RETURN(std::string value, PercentDecode(rest, /*plus=*/true));
    query.emplace_back(std::move(name), std::move(value));
  }
  return query;
}

absl::StatusOr<Target> ParseTarget(std::string_view target) {
  if (target.size() > kTargetBytesMax) {
    return absl::InvalidArgumentError(fmt::format("the request target is {} bytes, the limit is {}",
                                                  target.size(), kTargetBytesMax));
  }
  if (target.empty() || target.front() != '/')
    return absl::InvalidArgumentError("the request target does not begin with '/'");
  for (const char c : target) {
    if (static_cast<unsigned char>(c) <= ' ' || c == '\x7f' || c == '#')
      return absl::InvalidArgumentError("the request target has a character that must be escaped");
  }
  Target parsed;
  const size_t mark = std::min(target.find('?'), target.size());
  parsed.path = std::string(target.substr(0, mark));
  for (size_t at = 1; at < mark;) {
    const size_t end = std::min(target.find('/', at), mark);
    ASSIGN_OR_RETURN(std::string segment,
                     PercentDecode(target.substr(at, end - at), /*plus=*/false));
    if (segment == "." || segment == "..")
      return absl::InvalidArgumentError("the request target has a dotted segment");
    if (segment.empty())
      return absl::InvalidArgumentError("the request target has an empty segment");
    parsed.segments.push_back(std::move(segment));
    at = end + 1;
  }
  if (mark < target.size()) {
    ASSIGN_OR_RETURN(parsed.query, ParseQuery(target.substr(mark + 1)));
  }
  return parsed;
}

}  // namespace reprise::http
