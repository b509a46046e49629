#include "sandboxd/network/guard.h"

#include <algorithm>

namespace reprise::sandboxd::network {
namespace {

constexpr int64_t kMicrosPerSecond = 1'000'000;

}  // namespace

void Guard::Learn(const std::string& canonical, DnsAnswer* answer) {
  std::erase_if(answer->addresses, [&](uint32_t address) {
    const Reach reach = ReachOf(address);
    if (reach == Reach::kNever || !leaves_host_(address)) return true;
    return reach == Reach::kPrivate && !policy_.NamesAddress(address);
  });
  const int64_t now = clock_();
  const int64_t seconds =
      std::clamp<int64_t>(answer->ttl_s, kAddressSecondsMin, kAddressSecondsMax);
  if (learnt_.size() + answer->addresses.size() > kLearntMax) Forget();
  for (const uint32_t address : answer->addresses) {
    if (learnt_.size() >= kLearntMax && !learnt_.contains(address)) continue;
    int64_t& until = learnt_[address][canonical];
    until = std::max(until, now + seconds * kMicrosPerSecond);
  }
}

void Guard::Forget() {
  const int64_t now = clock_();
  for (auto address = learnt_.begin(); address != learnt_.end();) {
    std::erase_if(address->second, [&](const auto& name) { return name.second <= now; });
    address = address->second.empty() ? learnt_.erase(address) : std::next(address);
  }
}

std::vector<std::string> Guard::NamesOf(uint32_t address) {
  std::vector<std::string> names;
  const auto found = learnt_.find(address);
  if (found == learnt_.end()) return names;
  const int64_t now = clock_();
  for (const auto& [name, until] : found->second) {
    if (until > now) names.push_back(name);
  }
  return names;
}

std::optional<std::vector<std::string>> Guard::Judge(const Endpoint& to, Protocol protocol) {
  std::vector<std::string> names = NamesOf(to.address);
  if (!policy_.Allows(to.address, to.port, protocol, names) || !leaves_host_(to.address))
    return std::nullopt;
  return names;
}

bool Guard::Still(const Endpoint& to, Protocol protocol,
                  const std::vector<std::string>& names) const {
  return policy_.Allows(to.address, to.port, protocol, names);
}

}  // namespace reprise::sandboxd::network
