// What a sandbox may reach, as rules, and the judgement of one destination. A rule is text, the
// same in the API, the command and between the daemon and a gate:
//
//   TARGET[:PORT[-PORT]][/tcp|/udp]     TARGET = host.name | *.host.name | 1.2.3.4 | 10.0.0.0/8
//
// Without a port every port is meant, without a protocol both. `*.a.b` means every name below a.b,
// not a.b itself. Allow rules win over deny rules; what neither names is reachable only when the
// policy is open. Some addresses are never reachable (Reach::kNever), and private ones only by an
// address rule that lies within a private range: neither an open policy nor an answer of the DNS
// leads there.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::sandboxd::network {

inline constexpr size_t kRulesMax = 256;      // of one policy
inline constexpr size_t kRuleBytesMax = 300;  // one rule as text
// Of Policy::Text, with the word before each rule.
inline constexpr size_t kPolicyBytesMax = kRulesMax * (kRuleBytesMax + 8);
inline constexpr size_t kNameBytesMax = 253;  // a host name
inline constexpr uint16_t kDnsPort = 53;

enum class Protocol : uint8_t { kTcp = 1, kUdp = 2 };

// IPv4 addresses are numbers in host order: 1.2.3.4 is 0x01020304.
absl::StatusOr<uint32_t> ParseAddress(std::string_view text);
std::string FormatAddress(uint32_t address);

// What an address is, whatever the rules say.
enum class Reach {
  kNever,  // loopback, link-local with the metadata services, multicast, reserved, cloud hosts' own
           // services
  kPrivate,  // RFC 1918, carrier-grade NAT, benchmarking
  kPublic,
};
Reach ReachOf(uint32_t address);

// Lower case, without the dot at its end; "" when it is no host name.
std::string CanonicalName(std::string_view name);

struct Rule {
  std::string name;       // canonical; "" = an address rule
  bool wildcard = false;  // names below `name`
  uint32_t network = 0;
  int prefix = 32;
  uint16_t port_first = 0, port_last = 65535;
  uint8_t protocols = 3;  // bits of Protocol

  bool MatchesName(std::string_view canonical) const;
  bool MatchesAddress(uint32_t address) const;
  bool MatchesPort(uint16_t port, Protocol protocol) const;
};
// INVALID_ARGUMENT with the rule and what is wrong with it.
absl::StatusOr<Rule> ParseRule(std::string_view text);

class Policy {
 public:
  // Nothing is reachable.
  Policy() = default;
  // INVALID_ARGUMENT: a rule is malformed, a deny rule has a name, there are too many.
  static absl::StatusOr<Policy> Make(const std::vector<std::string>& allow,
                                     const std::vector<std::string>& deny, bool open);
  // Of what Text wrote.
  static absl::StatusOr<Policy> Parse(std::string_view text);
  // One line a rule: "allow RULE", "deny RULE", and "open". Not checked.
  static std::string Text(const std::vector<std::string>& allow,
                          const std::vector<std::string>& deny, bool open);

  // Whether this name is answered by the DNS of the sandbox. `canonical` as CanonicalName makes it.
  bool Resolves(std::string_view canonical) const;
  // An allow rule names the address itself, for some port.
  bool NamesAddress(uint32_t address) const;
  // Whether the destination may be reached. `names`: those whose answers to this sandbox held the
  // address.
  bool Allows(uint32_t address, uint16_t port, Protocol protocol,
              const std::vector<std::string>& names) const;

 private:
  std::vector<Rule> allow_, deny_;
  bool open_ = false;
};

}  // namespace reprise::sandboxd::network
