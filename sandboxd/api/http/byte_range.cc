#include "sandboxd/api/http/byte_range.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "http/message.h"

namespace reprise::sandboxd::http {
namespace {

constexpr std::string_view kUnit = "bytes=";

// Digits only; false for anything else, and for more than 64 bits.
bool Number(std::string_view text, uint64_t* number) {
  if (text.empty() || text.find_first_not_of("0123456789") != std::string_view::npos) return false;
  return absl::SimpleAtoi(absl::string_view(text.data(), text.size()), number);
}

}  // namespace

ByteRange ParseRange(std::string_view header, uint64_t size) {
  if (!::reprise::http::EqualsIgnoreCase(header.substr(0, kUnit.size()), kUnit)) return {};
  const std::string_view range = header.substr(kUnit.size());
  const size_t dash = range.find('-');
  if (dash == std::string_view::npos) return {};
  const std::string_view first = range.substr(0, dash), last = range.substr(dash + 1);
  ByteRange part{ByteRange::Kind::kPart, 0, size};
  uint64_t number = 0;
  if (first.empty()) {  // the last so many
    if (!Number(last, &number)) return {};
    part.begin = size - std::min(size, number);
    if (number == 0 || size == 0) part.kind = ByteRange::Kind::kOutside;
    return part;
  }
  if (!Number(first, &part.begin)) return {};
  if (!last.empty()) {
    if (!Number(last, &number) || number < part.begin) return {};
    part.end = std::min(size, number < UINT64_MAX ? number + 1 : number);
  }
  if (part.begin >= size) part.kind = ByteRange::Kind::kOutside;
  return part;
}

}  // namespace reprise::sandboxd::http
