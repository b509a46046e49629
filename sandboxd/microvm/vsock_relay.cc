#include "sandboxd/microvm/vsock_relay.h"

#include <errno.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/status_macros.h"
#include "sandboxd/microvm/vmm_process.h"

namespace reprise::sandboxd::microvm {
namespace {

constexpr size_t kHeldBytesMax = 256 << 10;  // of one direction
constexpr size_t kAnswerBytesMax = 64;
constexpr long kRetryNs = 10'000'000;

}  // namespace

absl::StatusOr<base::UniqueFd> VsockRelay::Begin() {
  End();
  ASSIGN_OR_RETURN(Pair pair, MakePair());
  timer_.Reset(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!timer_.valid()) return base::ErrnoStatus(errno, "make a timer");
  near_ = std::move(pair.theirs);
  return std::move(pair.ours);
}

void VsockRelay::End() {
  near_.Reset(), far_.Reset(), timer_.Reset();
  to_far_.clear(), to_near_.clear(), answer_.clear();
  stage_ = Stage::kIdle;
  wanted_ = false;
}

void VsockRelay::Connect() {
  wanted_ = true;
  TryConnect();
}

// What the last connection did not take is gone with it: nothing was on its way.
void VsockRelay::TryConnect() {
  far_.Reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  answer_.clear();
  stage_ = Stage::kIdle;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket_.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const std::string ask = fmt::format("CONNECT {}\n", port_);
  if (far_.valid() &&
      connect(far_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
      send(far_.get(), ask.data(), ask.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(ask.size())) {
    stage_ = Stage::kAsking;
    return;
  }
  far_.Reset();
  const itimerspec soon{{0, 0}, {0, kRetryNs}};
  timerfd_settime(timer_.get(), 0, &soon, nullptr);
}

void VsockRelay::AddPollFds(std::vector<pollfd>* fds) const {
  if (stage_ != Stage::kOpen) {
    fds->push_back({far_.get(), POLLIN, 0});
    fds->push_back({timer_.get(), POLLIN, 0});
    return;
  }
  auto events = [](const std::string& out, const std::string& in) {
    return static_cast<short>((out.empty() ? 0 : POLLOUT) |
                              (in.size() < kHeldBytesMax ? POLLIN : 0));
  };
  fds->push_back({near_.get(), events(to_near_, to_far_), 0});
  fds->push_back({far_.get(), events(to_far_, to_near_), 0});
}

// "OK <port of the host>\n"; what follows is the guest's.
bool VsockRelay::TakeAnswer() {
  while (answer_.size() < kAnswerBytesMax) {
    char byte;
    const ssize_t count = recv(far_.get(), &byte, 1, MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (count <= 0) return false;
    answer_ += byte;
    if (byte != '\n') continue;
    if (!answer_.starts_with("OK ")) return false;
    stage_ = Stage::kOpen;
    wanted_ = false;
    return true;
  }
  return false;
}

bool VsockRelay::Carry(int from, int to, std::string* held) const {
  char buffer[32 << 10];
  while (held->size() < kHeldBytesMax) {
    const ssize_t count = recv(from, buffer, sizeof(buffer), MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) break;
    if (count <= 0) return false;
    held->append(buffer, static_cast<size_t>(count));
  }
  while (!held->empty()) {
    const ssize_t count = send(to, held->data(), held->size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) break;
    if (count <= 0) return false;
    held->erase(0, static_cast<size_t>(count));
  }
  return true;
}

void VsockRelay::Step() {
  if (!near_.valid()) return;
  if (stage_ == Stage::kIdle && wanted_) {
    uint64_t fired = 0;
    if (read(timer_.get(), &fired, sizeof(fired)) == sizeof(fired)) TryConnect();
  }
  if (stage_ == Stage::kAsking && !TakeAnswer()) {
    // Nobody listens there yet.
    stage_ = Stage::kIdle;
    far_.Reset();
    const itimerspec soon{{0, 0}, {0, kRetryNs}};
    timerfd_settime(timer_.get(), 0, &soon, nullptr);
  }
  if (stage_ != Stage::kOpen) return;
  const bool out = Carry(near_.get(), far_.get(), &to_far_);
  const bool in = Carry(far_.get(), near_.get(), &to_near_);
  if (!out || !in) End();
}

}  // namespace reprise::sandboxd::microvm
