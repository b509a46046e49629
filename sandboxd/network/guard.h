// What a gate knows and decides: the policy in force, the addresses that its DNS handed to the
// sandbox, and for how long. One place judges every connection, so that nothing is relayed that was
// not asked about here. Single-threaded.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "sandboxd/network/dns.h"
#include "sandboxd/network/inside.h"
#include "sandboxd/network/policy.h"

namespace reprise::sandboxd::network {

inline constexpr int64_t kAddressSecondsMin = 300;    // an answer is good for at least so long
inline constexpr int64_t kAddressSecondsMax = 86400;  // and no longer than this
inline constexpr size_t kLearntMax = 4096;            // addresses known at one time

struct Counters {
  uint64_t allowed = 0;         // connections and flows
  uint64_t refused = 0;         // by the policy, or for their number
  uint64_t cut = 0;             // ended by a new policy
  uint64_t names_answered = 0;  // with an address
  uint64_t names_refused = 0;   // by the policy, or because every address was forbidden
};

class Guard {
 public:
  // Whether an address is not of this host (netlink.h), and microseconds of a monotonic clock.
  using LeavesHost = std::function<bool(uint32_t)>;
  using Clock = std::function<int64_t()>;
  Guard(Policy policy, LeavesHost leaves_host, Clock clock)
      : policy_(std::move(policy)),
        leaves_host_(std::move(leaves_host)),
        clock_(std::move(clock)) {}

  void Set(Policy policy) { policy_ = std::move(policy); }
  bool Resolves(std::string_view canonical) const { return policy_.Resolves(canonical); }

  // Takes out of an answer what must not be reached by a name, and remembers the rest. Only answers
  // of names that resolve may come here.
  void Learn(const std::string& canonical, DnsAnswer* answer);

  // The names that an allowed destination was asked for by; nullopt: it is not allowed. Counts
  // nothing.
  std::optional<std::vector<std::string>> Judge(const Endpoint& to, Protocol protocol);
  // Whether a connection that Judge allowed under these names still is.
  bool Still(const Endpoint& to, Protocol protocol, const std::vector<std::string>& names) const;

  Counters& counters() { return counters_; }

 private:
  std::vector<std::string> NamesOf(uint32_t address);
  void Forget();

  Policy policy_;
  const LeavesHost leaves_host_;
  const Clock clock_;
  std::map<uint32_t, std::map<std::string, int64_t>>
      learnt_;  // address -> name -> until, microseconds
  Counters counters_;
};

}  // namespace reprise::sandboxd::network
