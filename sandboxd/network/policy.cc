#include "sandboxd/network/policy.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"

namespace reprise::sandboxd::network {
namespace {

constexpr size_t kLabelBytesMax = 63;  // RFC 1035

struct Range {
  uint32_t network;
  int prefix;
};
constexpr Range kNever[] = {
    {0x00000000, 8},   // this network
    {0x7f000000, 8},   // loopback
    {0xa9fe0000, 16},  // link-local, where clouds have their metadata
    {0xc0000000, 24},  // protocol assignments; Oracle's metadata
    {0xa83f8110, 32},  // 168.63.129.16: Azure's host
    {0x646464c8, 32},  // 100.100.100.200: Alibaba's metadata
    {0xe0000000, 4},   // multicast
    {0xf0000000, 4},   // reserved, broadcast
};
constexpr Range kPrivate[] = {
    {0x0a000000, 8}, {0xac100000, 12}, {0xc0a80000, 16}, {0x64400000, 10}, {0xc6120000, 15}};

constexpr uint32_t Mask(int prefix) { return prefix == 0 ? 0 : ~0u << (32 - prefix); }
constexpr bool Within(uint32_t address, const Range& range) {
  return (address & Mask(range.prefix)) == range.network;
}

// The rule names a network that is private as a whole: whoever wrote it meant that.
bool NamesPrivate(const Rule& rule) {
  return std::any_of(std::begin(kPrivate), std::end(kPrivate), [&](const Range& range) {
    return rule.prefix >= range.prefix && Within(rule.network, range);
  });
}

absl::Status Bad(std::string_view rule, std::string_view what) {
  return absl::InvalidArgumentError(
      fmt::format("network rule \"{}\" {}; a rule is TARGET[:PORT[-PORT]][/tcp|/udp]",
                  absl::CEscape(std::string(rule.substr(0, kRuleBytesMax))), what));
}

bool ParsePort(std::string_view text, uint16_t* port) {
  uint32_t number = 0;
  if (text.empty() || text.size() > 5 || !absl::SimpleAtoi(std::string(text), &number) ||
      number == 0 || number > 65535) {
    return false;
  }
  *port = static_cast<uint16_t>(number);
  return true;
}

}  // namespace

absl::StatusOr<uint32_t> ParseAddress(std::string_view text) {
  in_addr address{};
  if (inet_pton(AF_INET, std::string(text).c_str(), &address) == 1) return ntohl(address.s_addr);
  return absl::InvalidArgumentError(
      fmt::format("\"{}\" is not an IPv4 address", absl::CEscape(std::string(text.substr(0, 64)))));
}

std::string FormatAddress(uint32_t address) {
  return fmt::format("{}.{}.{}.{}", address >> 24, address >> 16 & 255, address >> 8 & 255,
                     address & 255);
}

Reach ReachOf(uint32_t address) {
  for (const Range& range : kNever) {
    if (Within(address, range)) return Reach::kNever;
  }
  for (const Range& range : kPrivate) {
    if (Within(address, range)) return Reach::kPrivate;
  }
  return Reach::kPublic;
}

std::string CanonicalName(std::string_view name) {
  if (!name.empty() && name.back() == '.') name.remove_suffix(1);
  if (name.empty() || name.size() > kNameBytesMax) return "";
  std::string canonical = absl::AsciiStrToLower(std::string(name));
  size_t label = 0;
  for (const char c : canonical) {
    if (c == '.') {
      if (label == 0) return "";
      label = 0;
    } else if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_') {
      return "";
    } else if (++label > kLabelBytesMax) {
      return "";
    }
  }
  return label == 0 ? "" : canonical;
}

bool Rule::MatchesName(std::string_view canonical) const {
  if (name.empty()) return false;
  if (!wildcard) return canonical == name;
  return canonical.size() > name.size() + 1 && canonical.ends_with(name) &&
         canonical[canonical.size() - name.size() - 1] == '.';
}
bool Rule::MatchesAddress(uint32_t address) const {
  return name.empty() && (address & Mask(prefix)) == network;
}
bool Rule::MatchesPort(uint16_t port, Protocol protocol) const {
  return port >= port_first && port <= port_last &&
         (protocols & static_cast<uint8_t>(protocol)) != 0;
}

absl::StatusOr<Rule> ParseRule(std::string_view text) {
  Rule rule;
  std::string_view rest = text;
  if (rest.size() > kRuleBytesMax) return Bad(text, "is too long");
  for (const auto& [suffix, protocol] :
       {std::pair{std::string_view("/tcp"), Protocol::kTcp}, {"/udp", Protocol::kUdp}}) {
    if (!rest.ends_with(suffix)) continue;
    rest.remove_suffix(suffix.size());
    rule.protocols = static_cast<uint8_t>(protocol);
    break;
  }
  if (std::count(rest.begin(), rest.end(), ':') > 1 || rest.starts_with('['))
    return Bad(text, "looks like IPv6, which sandboxes do not have");
  if (const size_t colon = rest.find(':'); colon != std::string_view::npos) {
    const std::string_view ports = rest.substr(colon + 1);
    rest = rest.substr(0, colon);
    const size_t dash = ports.find('-');
    if (!ParsePort(ports.substr(0, dash), &rule.port_first))
      return Bad(text, "has no port after ':'");
    rule.port_last = rule.port_first;
    if (dash != std::string_view::npos &&
        (!ParsePort(ports.substr(dash + 1), &rule.port_last) || rule.port_last < rule.port_first)) {
      return Bad(text, "has a range of ports that is none");
    }
  }
  std::string_view host = rest;
  if (const size_t slash = rest.find('/'); slash != std::string_view::npos) {
    const std::string_view length = rest.substr(slash + 1);
    host = rest.substr(0, slash);
    if (length.empty() || length.size() > 2 ||
        !absl::SimpleAtoi(std::string(length), &rule.prefix) || rule.prefix < 0 ||
        rule.prefix > 32) {
      return Bad(text, "has a prefix length outside of 0..32");
    }
  }
  if (const absl::StatusOr<uint32_t> address = ParseAddress(host); address.ok()) {
    rule.network = *address;
    if ((rule.network & ~Mask(rule.prefix)) != 0)
      return Bad(text, "has address bits below its prefix length");
    if (ReachOf(rule.network) == Reach::kNever && rule.prefix >= 8)
      return Bad(text, "names addresses that no sandbox may reach");
    return rule;
  }
  if (host.size() != rest.size())
    return Bad(text, "has a prefix length after what is no IPv4 address");
  if (host.starts_with("*.")) {
    rule.wildcard = true;
    host.remove_prefix(2);
  }
  rule.name = CanonicalName(host);
  if (rule.name.empty())
    return Bad(text, "names no host: a name, *.name, an IPv4 address or a CIDR");
  const std::string_view last = std::string_view(rule.name).substr(rule.name.rfind('.') + 1);
  if (std::all_of(last.begin(), last.end(), [](unsigned char c) { return absl::ascii_isdigit(c); }))
    return Bad(text, "is neither an IPv4 address nor a name");
  return rule;
}

absl::StatusOr<Policy> Policy::Make(const std::vector<std::string>& allow,
                                    const std::vector<std::string>& deny, bool open) {
  if (allow.size() + deny.size() > kRulesMax) {
    return absl::InvalidArgumentError(
        fmt::format("network: {} rules, the limit is {}", allow.size() + deny.size(), kRulesMax));
  }
  Policy policy;
  policy.open_ = open;
  for (const std::string& text : allow) {
    ASSIGN_OR_RETURN(Rule rule, ParseRule(text));
    policy.allow_.push_back(std::move(rule));
  }
  for (const std::string& text : deny) {
    ASSIGN_OR_RETURN(Rule rule, ParseRule(text));
    if (!rule.name.empty())
      return Bad(text,
                 "is a name: only addresses can be denied, others of the name would stay open");
    policy.deny_.push_back(std::move(rule));
  }
  return policy;
}

std::string Policy::Text(const std::vector<std::string>& allow,
                         const std::vector<std::string>& deny, bool open) {
  std::string text;
  for (const std::string& rule : allow) text += fmt::format("allow {}\n", rule);
  for (const std::string& rule : deny) text += fmt::format("deny {}\n", rule);
  if (open) text += "open\n";
  return text;
}

absl::StatusOr<Policy> Policy::Parse(std::string_view text) {
  std::vector<std::string> allow, deny;
  bool open = false;
  for (const absl::string_view piece :
       absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    const std::string_view line(piece.data(), piece.size());
    if (line.empty()) continue;
    if (line.starts_with("allow ")) {
      allow.emplace_back(line.substr(6));
    } else if (line.starts_with("deny ")) {
      deny.emplace_back(line.substr(5));
    } else if (line == "open") {
      open = true;
    } else {
      return Bad(line, "is no line of a policy");
    }
  }
  return Make(allow, deny, open);
}

bool Policy::Resolves(std::string_view canonical) const {
  return open_ || std::any_of(allow_.begin(), allow_.end(),
                              [&](const Rule& rule) { return rule.MatchesName(canonical); });
}

bool Policy::NamesAddress(uint32_t address) const {
  const bool is_private = ReachOf(address) == Reach::kPrivate;
  return std::any_of(allow_.begin(), allow_.end(), [&](const Rule& rule) {
    return rule.MatchesAddress(address) && (!is_private || NamesPrivate(rule));
  });
}

bool Policy::Allows(uint32_t address, uint16_t port, Protocol protocol,
                    const std::vector<std::string>& names) const {
  const Reach reach = ReachOf(address);
  if (reach == Reach::kNever) return false;
  for (const Rule& rule : allow_) {
    if (!rule.MatchesPort(port, protocol)) continue;
    if (rule.MatchesAddress(address) && (reach == Reach::kPublic || NamesPrivate(rule)))
      return true;
    if (reach == Reach::kPublic && std::any_of(names.begin(), names.end(), [&](const auto& name) {
          return rule.MatchesName(name);
        })) {
      return true;
    }
  }
  if (!open_ || reach != Reach::kPublic) return false;
  return std::none_of(deny_.begin(), deny_.end(), [&](const Rule& rule) {
    return rule.MatchesAddress(address) && rule.MatchesPort(port, protocol);
  });
}

}  // namespace reprise::sandboxd::network
