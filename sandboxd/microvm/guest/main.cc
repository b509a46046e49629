// reprise-guest: init of a guest of ours, the only program of its initramfs beside reprise-agent.
// Start order: kernel modules, the serial port, Hello; then, when the host says so, the root and
// the agent in namespaces of its own; from then on it carries connections between the port and the
// agent. Nothing that runs in the sandbox sees this process, its port or its file systems.
//
// `reprise-guest serve` does the last part in a system of its own, which has the port's driver and
// reprise-agent beside this program or in PATH.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

// After the socket headers, which it needs.
#include <linux/vm_sockets.h>

#include <memory>
#include <string>
#include <vector>

#include "sandboxd/agent/os.h"
#include "sandboxd/agent/protocol.h"
#include "sandboxd/microvm/guest/root.h"
#include "sandboxd/microvm/mux.h"

namespace {

using namespace reprise::sandboxd;  // NOLINT: a program of one file
using agent::Fd;
using microvm::GuestMessage;

constexpr int kPortWaitMs = 30'000;
constexpr int kAgentStartMs = 60'000;
constexpr int kPollMs = 2;         // while the port or the agent is not there yet
constexpr int kLastWordsMs = 200;  // to get Failed out before the machine ends

// The machine ends with its init; a system of its own goes on.
[[noreturn]] void PowerOff(const std::string& why) {
  fprintf(stderr, "reprise-guest: %s\n", why.c_str());
  if (getpid() == 1) reboot(RB_POWER_OFF);
  _exit(1);
}

// Listens where the machine may have a vsock instead of the port; not valid where the kernel has
// none.
Fd ListenAtVsock() {
  Fd fd(socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_ANY;
  address.svm_port = microvm::kGuestVsockPort;
  if (!fd.valid() || bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(fd.get(), 1) != 0) {
    fd.Reset();
  }
  return fd;
}

// The host, nobody else: the next connection is the one that counts.
Fd AcceptHost(const Fd& listener) {
  sockaddr_vm peer{};
  socklen_t size = sizeof(peer);
  Fd fd(accept4(listener.get(), reinterpret_cast<sockaddr*>(&peer), &size,
                SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd.valid() && peer.svm_cid != VMADDR_CID_HOST) fd.Reset();
  return fd;
}

Fd OpenPort(const Fd& listener) {
  const int64_t deadline = agent::NowMs() + kPortWaitMs;
  while (agent::NowMs() < deadline) {
    // The first port of the first virtio serial device, whatever number that got.
    for (const char* const path : {"/dev/vport0p1", "/dev/vport1p1", "/dev/vport2p1"}) {
      Fd port(open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC));
      if (port.valid()) return port;
    }
    Fd connection = listener.valid() ? AcceptHost(listener) : Fd();
    if (connection.valid()) return connection;
    usleep(kPollMs * 1000);
  }
  PowerOff("the serial port did not appear");
}

Fd ConnectToAgent() {
  Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", microvm::kRunDir,
           agent::kSocketName);
  if (!fd.valid() ||
      connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      fcntl(fd.get(), F_SETFL, O_NONBLOCK) != 0) {
    fd.Reset();
  }
  return fd;
}

class Init {
 public:
  Init(Fd port, Fd listener)
      : listener_(std::move(listener)),
        mux_(
            std::move(port),
            [this](GuestMessage type, const std::string& payload) { return Take(type, payload); },
            [this] { return agent_ > 0 ? ConnectToAgent() : Fd(); }) {
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, nullptr);
    child_signals_.Reset(signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK));
  }

  [[noreturn]] void Run() {
    utsname name{};
    uname(&name);
    mux_.Send(microvm::GuestFrame(GuestMessage::kHello,
                                  microvm::Hello{microvm::kGuestWireVersion, name.release}));
    while (mux_.Step()) {
      if (!failure_.empty()) Fail();
      std::vector<pollfd> fds = {{child_signals_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
      mux_.AddPollFds(&fds);
      poll(fds.data(), fds.size(), -1);
      // No host yet: the port hangs up without an end.
      if ((fds[2].revents & POLLHUP) != 0) usleep(kPollMs * 1000);
      // A machine that was saved, or a copy of it, has lost its connection.
      if (fds[1].revents != 0) {
        if (Fd again = AcceptHost(listener_); again.valid()) mux_.SetPort(std::move(again));
      }
      if (fds[0].revents != 0) Reap();
    }
    PowerOff(mux_.why());
  }

 private:
  bool Take(GuestMessage type, const std::string& payload) {
    microvm::Setup setup;
    microvm::Renew renew;
    if (type == GuestMessage::kSetup && agent_ == 0 && agent::Decode(payload, &setup)) {
      if (!Start(setup, &failure_)) return true;
      mux_.Send(microvm::GuestFrame(GuestMessage::kReady));
      return true;
    }
    if (type == GuestMessage::kRenew && agent_ > 0 && agent::Decode(payload, &renew)) {
      // Of a system of its own only the clock is ours to set.
      microvm::Renew clock;
      clock.wall_us = renew.wall_us;
      if (!microvm::ApplyRenew(getpid() == 1 ? renew : clock, &failure_)) return true;
      mux_.Send(microvm::GuestFrame(GuestMessage::kRenewed));
      return true;
    }
    // Asked before the machine is saved, and after, of this one or of a copy.
    if (type == GuestMessage::kHold && payload.empty()) {
      mux_.Send(microvm::GuestFrame(GuestMessage::kHeld));
      mux_.Hold();
      return true;
    }
    if (type == GuestMessage::kGoOn && payload.empty()) return mux_.GoOn(), true;
    if (type == GuestMessage::kRestart && payload.empty()) return mux_.Restart(), true;
    return false;
  }

  bool Start(const microvm::Setup& setup, std::string* why) {
    if (getpid() != 1) {
      agent_ = microvm::StartAgentHere(setup, why);
    } else {
      if (!microvm::MountRoot(setup, why) || !microvm::MakeCgroup(setup, why)) return false;
      agent_ = microvm::StartAgent(setup, why);
    }
    if (agent_ < 0) return false;
    const int64_t deadline = agent::NowMs() + kAgentStartMs;
    while (!ConnectToAgent().valid()) {
      if (waitpid(agent_, nullptr, WNOHANG) == agent_ || agent::NowMs() > deadline) {
        *why = "the agent did not start (its words are above)";
        return false;
      }
      usleep(kPollMs * 1000);
    }
    return true;
  }

  void Reap() {
    signalfd_siginfo info;
    while (read(child_signals_.get(), &info, sizeof(info)) > 0) {
    }
    while (true) {
      const pid_t pid = waitpid(-1, nullptr, WNOHANG);
      if (pid <= 0) return;
      if (pid == agent_) failure_ = "the agent ended";
    }
  }

  // The host learns why, then the machine ends.
  [[noreturn]] void Fail() {
    mux_.Send(microvm::GuestFrame(GuestMessage::kFailed, microvm::Failed{failure_}));
    const int64_t deadline = agent::NowMs() + kLastWordsMs;
    while (agent::NowMs() < deadline && mux_.Step()) usleep(kPollMs * 1000);
    PowerOff(failure_);
  }

  Fd listener_;  // of the vsock, where there is one
  Fd child_signals_;
  pid_t agent_ = 0;
  std::string failure_;  // why this guest cannot go on
  microvm::Mux mux_;
};

}  // namespace

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  if (getpid() != 1) {
    if (argc != 2 || strcmp(argv[1], "serve") != 0) {
      fprintf(stderr, "usage: reprise-guest serve, in a virtual machine of the vm tier\n");
      return 2;
    }
    Init(OpenPort(Fd()), Fd()).Run();
  }
  std::string why;
  const bool prepared = microvm::PrepareKernel(&why);
  const Fd console(open("/dev/console", O_RDWR | O_NOCTTY));
  for (const int standard : {0, 1, 2}) dup2(console.get(), standard);
  if (!prepared) PowerOff(why);
  if (!microvm::RunFirst()) PowerOff("cannot run before the sandbox");
  Fd listener = ListenAtVsock();
  Fd port = OpenPort(listener);
  Init(std::move(port), std::move(listener)).Run();
}
