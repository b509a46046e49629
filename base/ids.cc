#include "base/ids.h"

#include <sys/random.h>

#include <cstdlib>
#include <fmt/format.h>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_split.h"

namespace reprise::base {

absl::Status CheckId(std::string_view id, std::string_view what, bool allow_slash) {
  auto bad = [&](std::string_view why) {
    return absl::InvalidArgumentError(
        fmt::format("{} \"{}\" {}", what, absl::CEscape(std::string(id.substr(0, 64))), why));
  };
  if (id.empty()) return bad("is empty");
  if (id.size() > kMaxIdBytes) return bad(fmt::format("is longer than {} bytes", kMaxIdBytes));
  for (char c : id) {
    bool ok = absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-' ||
              (allow_slash && c == '/');
    if (!ok) return bad("has a character outside [A-Za-z0-9._-]");
  }
  for (absl::string_view segment : absl::StrSplit(absl::string_view(id.data(), id.size()), '/')) {
    if (segment.empty() || segment == "." || segment == "..") return bad("has an empty or dotted segment");
  }
  return absl::OkStatus();
}

std::string RandomHex(size_t bytes) {
  std::string raw(bytes, '\0');
  size_t got = 0;
  while (got < bytes) {
    ssize_t n = ::getrandom(raw.data() + got, bytes - got, 0);
    if (n < 0) std::abort();  // the kernel's generator never fails after boot
    got += static_cast<size_t>(n);
  }
  return absl::BytesToHexString(raw);
}

}  // namespace reprise::base
