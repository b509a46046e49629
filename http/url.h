// Addresses of other people's servers, as configurations name them. Strict: what is not plainly a
// scheme, a host, a port and a path is refused.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace reprise::http {

struct Url {
  bool tls = false;
  std::string host;               // a name or an address, without the brackets of IPv6
  uint16_t port = 0;              // never 0
  std::string target;             // path and query, begins with '/'
  std::string authority() const;  // as the Host header names it
};

// http://HOST[:PORT][/PATH][?QUERY] or https://. INVALID_ARGUMENT says what is wrong.
absl::StatusOr<Url> ParseUrl(std::string_view text);

}  // namespace reprise::http
