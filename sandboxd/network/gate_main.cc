// reprise-netgate RESOLVER: the gate of one sandbox's network. Started by sandboxd and the function
// tier's workers, with the descriptors of launch.h; tells on kGateStatus how its start went.
#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <string>

#include <fmt/format.h>

#include "absl/strings/numbers.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "sandboxd/network/gate.h"
#include "sandboxd/network/launch.h"

namespace {

using namespace reprise;  // NOLINT: a program of one file
namespace network = sandboxd::network;

constexpr int kBacklog = 16;

absl::StatusOr<network::Endpoint> ParseResolver(const std::string& text) {
  network::Endpoint endpoint;
  const size_t colon = text.rfind(':');
  uint32_t port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(text.substr(colon + 1), &port) || port == 0 ||
      port > 65535) {
    return absl::InvalidArgumentError(fmt::format("resolver \"{}\" is not ADDRESS:PORT", text));
  }
  ASSIGN_OR_RETURN(endpoint.address, network::ParseAddress(text.substr(0, colon)));
  endpoint.port = static_cast<uint16_t>(port);
  return endpoint;
}

absl::StatusOr<base::UniqueFd> Listen() {
  base::UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  fmt::format_to_n(address.sun_path, sizeof(address.sun_path) - 1, "/proc/self/fd/{}/{}",
                   static_cast<int>(network::kGateDir), network::kGateSocket);
  if (!fd.valid() || bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(fd.get(), kBacklog) != 0) {
    return base::ErrnoStatus(errno, "make the gate's socket");
  }
  close(network::kGateDir);
  return fd;
}

absl::StatusOr<std::string> ReadPolicy() {
  std::string text(network::kPolicyBytesMax + 1, '\0');
  const ssize_t count = pread(network::kGatePolicy, text.data(), text.size(), 0);
  if (count < 0) return base::ErrnoStatus(errno, "read the policy");
  text.resize(static_cast<size_t>(count));
  return text;
}

absl::Status Run(const std::string& resolver, const std::function<void()>& ready) {
  network::GateOptions options;
  options.netns = base::UniqueFd(network::kGateNetns);
  options.life = base::UniqueFd(network::kGateLife);
  ASSIGN_OR_RETURN(options.resolver, ParseResolver(resolver));
  ASSIGN_OR_RETURN(const std::string text, ReadPolicy());
  ASSIGN_OR_RETURN(network::Policy policy, network::Policy::Parse(text));
  ASSIGN_OR_RETURN(options.control, Listen());
  const base::UniqueFd null(open("/dev/null", O_RDONLY | O_CLOEXEC));
  dup2(null.get(), network::kGatePolicy);
  return network::RunGate(std::move(options), std::move(policy), ready);
}

absl::Status Probe(const std::function<void()>& ready) {
  if (unshare(CLONE_NEWNET) != 0) return base::ErrnoStatus(errno, "make a network namespace");
  base::UniqueFd netns(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!netns.valid()) return base::ErrnoStatus(errno, "open a network namespace");
  RETURN_IF_ERROR(network::Inside::Enter(std::move(netns)).status());
  ready();
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  const bool probe = argc == 2 && std::string_view(argv[1]) == network::kGateProbe;
  if (argc != 2 || fcntl(probe ? network::kGateStatus : network::kGateDir, F_GETFD) < 0) {
    fmt::print(stderr, "reprise-netgate: started by sandboxd only\n");
    return 2;
  }
  const pid_t pid = fork();
  if (pid != 0) return pid < 0 ? 1 : 0;
  setsid();
  signal(SIGPIPE, SIG_IGN);
  signal(SIGINT, SIG_IGN);
  umask(077);
  prctl(PR_SET_NAME, network::kGateProgram);
  for (int fd = network::kGateStatus; fd <= network::kGateDir; ++fd) fcntl(fd, F_SETFD, FD_CLOEXEC);
  base::UniqueFd status(network::kGateStatus);
  auto ready = [&] {
    dprintf(status.get(), "ok\n");
    status.Reset();
  };
  const absl::Status ended = probe ? Probe(ready) : Run(argv[1], ready);
  if (!ended.ok() && status.valid())
    dprintf(status.get(), "%s\n", std::string(ended.message()).c_str());
  return ended.ok() ? 0 : 1;
}
