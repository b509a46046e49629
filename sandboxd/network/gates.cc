#include "sandboxd/network/gates.h"

#include <fmt/format.h>

#include <string_view>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "sandboxd/network/policy.h"

namespace reprise::sandboxd::network {
namespace {

constexpr char kHostResolvers[] = "/etc/resolv.conf";
constexpr uint64_t kHostResolversBytesMax = 64 << 10;

// The first IPv4 nameserver of the host, as the C library finds it.
std::string HostResolver() {
  const std::string text = base::ReadFile(kHostResolvers, kHostResolversBytesMax).value_or("");
  const std::vector<std::string> lines = absl::StrSplit(text, '\n');
  for (const std::string& line : lines) {
    const std::vector<std::string> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (words.size() >= 2 && words[0] == "nameserver" && ParseAddress(words[1]).ok())
      return words[1];
  }
  return "127.0.0.1";
}

absl::Status ToStatus(GateAnswer answer, const std::string& why) {
  switch (answer) {
    case GateAnswer::kOk:
      return absl::OkStatus();
    case GateAnswer::kNeverThere:
      return absl::NotFoundError(why);
    case GateAnswer::kGone:
      return absl::UnavailableError(why);
    case GateAnswer::kRefused:
      break;
  }
  return absl::InternalError(why);
}

}  // namespace

std::string PolicyText(const sandbox::NetworkPolicy& policy) {
  return Policy::Text({policy.allow().begin(), policy.allow().end()},
                      {policy.deny().begin(), policy.deny().end()}, policy.open());
}

absl::StatusOr<std::string> ResolverAddress(const std::string& flag) {
  if (flag.empty()) return fmt::format("{}:{}", HostResolver(), kDnsPort);
  const size_t colon = flag.find(':');
  uint32_t port = kDnsPort;
  const bool has_port =
      colon == std::string::npos ||
      (absl::SimpleAtoi(flag.substr(colon + 1), &port) && port > 0 && port < 65536);
  const absl::StatusOr<uint32_t> address = ParseAddress(flag.substr(0, colon));
  if (!has_port || !address.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("--resolver {}: must be an IPv4 address, with a port or without", flag));
  }
  return fmt::format("{}:{}", FormatAddress(*address), port);
}

void Add(const sandbox::NetworkCounters& count, sandbox::NetworkCounters* sum) {
  sum->set_allowed(sum->allowed() + count.allowed());
  sum->set_refused(sum->refused() + count.refused());
  sum->set_cut(sum->cut() + count.cut());
  sum->set_names_answered(sum->names_answered() + count.names_answered());
  sum->set_names_refused(sum->names_refused() + count.names_refused());
}

absl::Status Gates::Usable() {
  absl::MutexLock lock(&mutex_);
  if (tried_) return usable_;
  tried_ = true;
  std::string why;
  if (!ProbeGate(program_, &why)) {
    usable_ =
        absl::UnavailableError(fmt::format("sandboxes get no network here: {}; sandboxd needs "
                                           "root, reprise-netgate beside it, and Linux "
                                           "5.9 or newer with CONFIG_BPF_SYSCALL and CONFIG_INET",
                                           why));
  }
  return usable_;
}

absl::Status Gates::Set(const std::string& dir, const sandbox::NetworkPolicy& policy) const {
  std::string why;
  const GateAnswer answer = AskGate(dir, "set\n" + PolicyText(policy), nullptr, &why);
  return ToStatus(answer, why);
}

absl::Status Gates::Ensure(const std::string& dir, const sandbox::NetworkPolicy& policy,
                           const FindProcess& find) {
  absl::MutexLock lock(&starting_);
  const absl::Status set = Set(dir, policy);
  return absl::IsNotFound(set) || absl::IsUnavailable(set) ? Launch(dir, policy, find) : set;
}

absl::Status Gates::Keep(const std::string& dir, const sandbox::NetworkPolicy& policy,
                         const FindProcess& find) {
  absl::MutexLock lock(&starting_);
  const absl::Status answers = Count(dir).status();
  return absl::IsNotFound(answers) || absl::IsUnavailable(answers) ? Launch(dir, policy, find)
                                                                   : answers;
}

absl::Status Gates::Launch(const std::string& dir, const sandbox::NetworkPolicy& policy,
                           const FindProcess& find) const {
  GateLaunch launch;
  launch.program = program_;
  launch.dir = dir;
  launch.resolver = resolver_;
  launch.policy = PolicyText(policy);
  ASSIGN_OR_RETURN(launch.sandbox, find());
  std::string why;
  if (LaunchGate(launch, &why)) return absl::OkStatus();
  return absl::UnavailableError(fmt::format("cannot open the sandbox's network: {}", why));
}

absl::StatusOr<sandbox::NetworkCounters> Gates::Count(const std::string& dir) const {
  std::string text, why;
  RETURN_IF_ERROR(ToStatus(AskGate(dir, "counters\n", &text, &why), why));
  sandbox::NetworkCounters count;
  const std::vector<std::string> lines = absl::StrSplit(text, '\n', absl::SkipEmpty());
  for (const std::string& line : lines) {
    const size_t space = line.find(' ');
    uint64_t value = 0;
    const auto* field = count.GetDescriptor()->FindFieldByName(line.substr(0, space));
    if (space == std::string::npos || field == nullptr ||
        !absl::SimpleAtoi(line.substr(space + 1), &value)) {
      return absl::DataLossError(fmt::format("the gate of {} broke the protocol", dir));
    }
    count.GetReflection()->SetUInt64(&count, field, value);
  }
  return count;
}

}  // namespace reprise::sandboxd::network
