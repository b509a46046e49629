#include "sandboxd/network/inside.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "base/status_macros.h"
#include "sandboxd/network/netlink.h"
#include "sandboxd/network/policy.h"
#include "sandboxd/network/steering.h"

namespace reprise::sandboxd::network {
namespace {

constexpr int kBacklog = 128;
// A gate answers from ports that a program called, also from those below 1024.
constexpr char kLowPorts[] = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

sockaddr_in ToSockaddr(const Endpoint& endpoint) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(endpoint.address);
  address.sin_port = htons(endpoint.port);
  return address;
}

// SOCK_STREAM sockets listen.
absl::StatusOr<base::UniqueFd> MakeSocket(int type, const Endpoint& local) {
  base::UniqueFd fd(socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  const sockaddr_in address = ToSockaddr(local);
  if (!fd.valid() || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
      (type == SOCK_DGRAM &&
       setsockopt(fd.get(), SOL_IP, IP_RECVORIGDSTADDR, &on, sizeof(on)) != 0) ||
      bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      (type == SOCK_STREAM && listen(fd.get(), kBacklog) != 0)) {
    return base::ErrnoStatus(errno, "make the gate's sockets in a sandbox's network");
  }
  return fd;
}

class InsideImpl final : public Inside {
 public:
  explicit InsideImpl(base::UniqueFd netns) : netns_(std::move(netns)) {
    thread_ = std::thread([this] { Work(); });
  }
  ~InsideImpl() override {
    {
      std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  absl::Status SetUp() {
    return Do([this]() -> absl::Status {
      if (setns(netns_.get(), CLONE_NEWNET) != 0)
        return base::ErrnoStatus(errno, "enter a sandbox's network");
      RETURN_IF_ERROR(AllowLowPorts());
      constexpr Endpoint kAny{INADDR_LOOPBACK, 0};
      constexpr Endpoint kDns{INADDR_LOOPBACK, kDnsPort};
      // The loopback has to be up before anything is bound there.
      RETURN_IF_ERROR(MakeEverythingLocal(kSandboxAddress));
      ASSIGN_OR_RETURN(tcp_, MakeSocket(SOCK_STREAM, kAny));
      ASSIGN_OR_RETURN(udp_, MakeSocket(SOCK_DGRAM, kAny));
      ASSIGN_OR_RETURN(dns_tcp_, MakeSocket(SOCK_STREAM, kDns));
      ASSIGN_OR_RETURN(dns_udp_, MakeSocket(SOCK_DGRAM, kDns));
      ASSIGN_OR_RETURN(steering_, Steer(netns_.get(), kSandboxAddress,
                                        {tcp_.get(), udp_.get(), dns_tcp_.get(), dns_udp_.get()}));
      netns_.Reset();
      return absl::OkStatus();
    });
  }

  int tcp() const override { return tcp_.get(); }
  int udp() const override { return udp_.get(); }
  int dns_tcp() const override { return dns_tcp_.get(); }
  int dns_udp() const override { return dns_udp_.get(); }

  absl::StatusOr<base::UniqueFd> Answerer(const Endpoint& destination,
                                          const Endpoint& client) override {
    absl::StatusOr<base::UniqueFd> made;
    const absl::Status done = Do([&]() -> absl::Status {
      ASSIGN_OR_RETURN(base::UniqueFd fd, MakeSocket(SOCK_DGRAM, destination));
      const sockaddr_in peer = ToSockaddr(client);
      if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&peer), sizeof(peer)) != 0)
        return base::ErrnoStatus(errno, "answer a program in a sandbox");
      made = std::move(fd);
      return absl::OkStatus();
    });
    if (!done.ok()) return done;
    return made;
  }

 private:
  static absl::Status AllowLowPorts() {
    const base::UniqueFd fd(open(kLowPorts, O_WRONLY | O_CLOEXEC));
    if (!fd.valid() || write(fd.get(), "0", 1) != 1) return base::ErrnoStatus(errno, kLowPorts);
    return absl::OkStatus();
  }

  // Runs `work` on the thread inside.
  absl::Status Do(std::function<absl::Status()> work) {
    std::unique_lock lock(mutex_);
    work_ = std::move(work);
    changed_.notify_all();
    changed_.wait(lock, [this] { return !work_; });
    return result_;
  }
  void Work() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return ended_ || work_; });
      if (ended_) return;
      result_ = work_();
      work_ = nullptr;
      changed_.notify_all();
    }
  }

  base::UniqueFd netns_, tcp_, udp_, dns_tcp_, dns_udp_, steering_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<absl::Status()> work_;
  absl::Status result_;
  bool ended_ = false;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Inside>> Inside::Enter(base::UniqueFd netns) {
  auto inside = std::make_unique<InsideImpl>(std::move(netns));
  RETURN_IF_ERROR(inside->SetUp());
  return inside;
}

void Reset(int fd) {
  const linger now{1, 0};
  (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

}  // namespace reprise::sandboxd::network
