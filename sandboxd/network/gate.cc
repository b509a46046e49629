#include "sandboxd/network/gate.h"

#include <errno.h>
#include <fmt/format.h>
#include <grp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <memory>

#include "base/clock.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "sandboxd/network/accept_pause.h"
#include "sandboxd/network/guard.h"
#include "sandboxd/network/netlink.h"
#include "sandboxd/network/relay.h"
#include "sandboxd/network/resolver.h"

namespace reprise::sandboxd::network {
namespace {

namespace asio = boost::asio;
using asio::local::stream_protocol;
constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

// On the host: a user that nothing else is.
constexpr uid_t kGateUid = 0x77000000;
constexpr rlim_t kDescriptors = 4 * (kConnectionsMax + kFlowsMax);
constexpr std::string_view kSet = "set\n", kCounters = "counters\n";

// For every thread of the process: the C library tells them all. No file can be named any more.
absl::Status GiveUpPrivileges() {
  const rlimit descriptors{kDescriptors, kDescriptors};
  if (setrlimit(RLIMIT_NOFILE, &descriptors) != 0 || chroot("/proc/self/fdinfo") != 0 ||
      chdir("/") != 0 || setgroups(0, nullptr) != 0 ||
      setresgid(kGateUid, kGateUid, kGateUid) != 0 ||
      setresuid(kGateUid, kGateUid, kGateUid) != 0 || prctl(PR_SET_DUMPABLE, 0) != 0 ||
      prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return base::ErrnoStatus(errno, "give up the gate's privileges");
  }
  return absl::OkStatus();
}

class Gate {
 public:
  Gate(GateOptions options, std::unique_ptr<Inside> inside, Policy policy)
      : inside_(std::move(inside)),
        guard_(
            std::move(policy), [](uint32_t address) { return LeavesHost(address).value_or(false); },
            base::MonotonicMicros),
        resolver_(&io_, inside_.get(), &guard_, options.resolver),
        relay_(&io_, inside_.get(), &guard_),
        life_(io_, options.life.Release()),
        control_(io_, stream_protocol(), options.control.Release()) {}

  void Run() {
    life_.async_wait(asio::posix::stream_descriptor::wait_read,
                     [this](const boost::system::error_code&) { io_.stop(); });
    resolver_.Start();
    relay_.Start();
    asio::co_spawn(io_, Accept(), asio::detached);
    io_.run();
  }

 private:
  asio::awaitable<void> Accept() {
    while (true) {
      auto [error, client] = co_await control_.async_accept(kAwait);
      if (error == asio::error::operation_aborted) co_return;
      if (error) {
        co_await PauseAccepting(&io_);
      } else {
        asio::co_spawn(io_, Serve(std::move(client)), asio::detached);
      }
    }
  }

  asio::awaitable<void> Serve(stream_protocol::socket client) {
    std::string request;
    auto [error, count] =
        co_await asio::async_read(client, asio::dynamic_buffer(request, kPolicyBytesMax), kAwait);
    const std::string answer = error == asio::error::eof ? Answer(request) : "error too long\n";
    co_await asio::async_write(client, asio::buffer(answer), kAwait);
  }

  std::string Answer(std::string_view request) {
    if (request.starts_with(kSet)) {
      absl::StatusOr<Policy> policy = Policy::Parse(request.substr(kSet.size()));
      if (!policy.ok()) return fmt::format("error {}\n", policy.status().message());
      guard_.Set(*std::move(policy));
      relay_.Recheck();
      return "ok\n";
    }
    if (request != kCounters) return "error no request of this gate\n";
    const Counters& counters = guard_.counters();
    return fmt::format("ok\nallowed {}\nrefused {}\ncut {}\nnames_answered {}\nnames_refused {}\n",
                       counters.allowed, counters.refused, counters.cut, counters.names_answered,
                       counters.names_refused);
  }

  asio::io_context io_{1};
  const std::unique_ptr<Inside> inside_;
  Guard guard_;
  Resolver resolver_;
  Relay relay_;
  asio::posix::stream_descriptor life_;
  stream_protocol::acceptor control_;
};

}  // namespace

absl::Status RunGate(GateOptions options, Policy policy, const std::function<void()>& ready) {
  ASSIGN_OR_RETURN(std::unique_ptr<Inside> inside, Inside::Enter(std::move(options.netns)));
  Gate gate(std::move(options), std::move(inside), std::move(policy));
  RETURN_IF_ERROR(GiveUpPrivileges());
  ready();
  gate.Run();
  // What is under way ends with the process; the sandbox is gone.
  _exit(0);
}

}  // namespace reprise::sandboxd::network
