#include "http/url.h"

#include <fmt/format.h>

#include <algorithm>

#include "absl/strings/numbers.h"

namespace reprise::http {

std::string Url::authority() const {
  const std::string name = host.find(':') == host.npos ? host : fmt::format("[{}]", host);
  return port == (tls ? 443 : 80) ? name : fmt::format("{}:{}", name, port);
}

absl::StatusOr<Url> ParseUrl(std::string_view text) {
  auto bad = [text](std::string_view why) {
    return absl::InvalidArgumentError(fmt::format(
        "\"{}\" {}, allowed: http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH]", text, why));
  };
  for (char c : text) {
    if (c <= ' ' || c == 0x7f) return bad("has a space or a control character");
  }
  Url url;
  if (text.starts_with("https://")) {
    url.tls = true;
  } else if (!text.starts_with("http://")) {
    return bad("has another scheme");
  }
  std::string_view rest = text.substr(url.tls ? 8 : 7);
  const size_t end = std::min(rest.find_first_of("/?#"), rest.size());
  std::string_view place = rest.substr(0, end);
  url.target = std::string(rest.substr(end));
  if (url.target.find('#') != std::string::npos) return bad("has a fragment");
  if (url.target.empty() || url.target[0] != '/') url.target.insert(0, "/");
  if (place.find('@') != place.npos) return bad("has a user name");
  std::string_view port;
  if (place.starts_with('[')) {
    const size_t close = place.find(']');
    if (close == place.npos) return bad("has an open bracket");
    url.host = std::string(place.substr(1, close - 1));
    port = place.substr(close + 1);
  } else {
    const size_t colon = std::min(place.find(':'), place.size());
    url.host = std::string(place.substr(0, colon));
    port = place.substr(colon);
  }
  if (url.host.empty()) return bad("has no host");
  uint32_t number = url.tls ? 443 : 80;
  if (!port.empty() && (port[0] != ':' || !absl::SimpleAtoi(std::string(port.substr(1)), &number) ||
                        number == 0 || number > 65535)) {
    return bad("has a bad port");
  }
  url.port = static_cast<uint16_t>(number);
  return url;
}

}  // namespace reprise::http
