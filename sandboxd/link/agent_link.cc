#include "sandboxd/link/agent_link.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/format.h"
#include "base/status_macros.h"

namespace reprise::sandboxd {
namespace {

constexpr size_t kPrintableMax = 512;
constexpr size_t kReceiveBytes = 128 << 10;

// Waits for `events`; false at the deadline.
bool WaitFor(int fd, short events, int64_t deadline_us) {
  while (true) {
    int timeout = -1;
    if (deadline_us >= 0) {
      const int64_t left = deadline_us - base::MonotonicMicros();
      if (left <= 0) return false;
      timeout = static_cast<int>(std::min<int64_t>(left / 1000 + 1, 1 << 30));
    }
    pollfd item{fd, events, 0};
    if (poll(&item, 1, timeout) > 0) return true;
  }
}

int64_t DeadlineUs(int64_t timeout_ms) {
  return timeout_ms < 0 ? -1 : base::MonotonicMicros() + timeout_ms * 1000;
}

}  // namespace

absl::StatusOr<AgentConnection> AgentConnection::Open(const std::string& run_dir) {
  const std::string path = run_dir + "/" + agent::kSocketName;
  // The inode is pinned first and must be a socket: a link put in its place cannot lead to a socket
  // of the host.
  const base::UniqueFd inode(open(path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  struct stat info;
  if (!inode.valid() || fstat(inode.get(), &info) != 0) {
    return absl::UnavailableError(fmt::format("the agent's socket {} is not there", path));
  }
  if (!S_ISSOCK(info.st_mode)) return absl::DataLossError(fmt::format("{} is not a socket", path));
  base::UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return base::ErrnoStatus(errno, "make a socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  fmt::format_to_n(address.sun_path, sizeof(address.sun_path) - 1, "/proc/self/fd/{}", inode.get());
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return absl::UnavailableError(fmt::format("the agent at {} does not take connections: {}", path,
                                              base::ErrnoStatus(errno, "connect").message()));
  }
  return AgentConnection(std::move(fd));
}

absl::Status AgentConnection::Send(std::string_view bytes, int64_t timeout_ms) {
  const int64_t deadline = DeadlineUs(timeout_ms);
  while (!bytes.empty()) {
    const ssize_t count = send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count >= 0) {
      bytes.remove_prefix(static_cast<size_t>(count));
    } else if (errno == EAGAIN) {
      if (!WaitFor(fd_.get(), POLLOUT, deadline)) {
        return absl::DeadlineExceededError("the agent of the sandbox takes no data");
      }
    } else if (errno != EINTR) {
      return absl::UnavailableError("the agent of the sandbox closed the connection");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<AgentConnection::Received>> AgentConnection::TryReceive() {
  Received received;
  while (true) {
    switch (frames_.Pop(&received.type, &received.payload)) {
      case agent::FrameReader::Next::kFrame:
        return received;
      case agent::FrameReader::Next::kMalformed:
        return absl::DataLossError("the agent of the sandbox broke the protocol");
      case agent::FrameReader::Next::kNeedMore:
        break;
    }
    char buffer[kReceiveBytes];
    const ssize_t count = recv(fd_.get(), buffer, sizeof(buffer), MSG_DONTWAIT);
    if (count > 0) {
      frames_.Append(std::string_view(buffer, static_cast<size_t>(count)));
    } else if (count < 0 && errno == EAGAIN) {
      return std::nullopt;
    } else if (count == 0 || errno != EINTR) {
      return absl::UnavailableError("the agent of the sandbox closed the connection");
    }
  }
}

absl::StatusOr<AgentConnection::Received> AgentConnection::Receive(int64_t timeout_ms) {
  const int64_t deadline = DeadlineUs(timeout_ms);
  while (true) {
    ASSIGN_OR_RETURN(std::optional<Received> received, TryReceive());
    if (received) return *std::move(received);
    if (!WaitFor(fd_.get(), POLLIN, deadline)) {
      return absl::DeadlineExceededError("the agent of the sandbox does not answer");
    }
  }
}

absl::Status AgentConnection::ReceiveOk(int64_t timeout_ms) {
  ASSIGN_OR_RETURN(const Received received, Receive(timeout_ms));
  if (received.type == agent::FrameType::kOk) return absl::OkStatus();
  if (received.type == agent::FrameType::kError) return AgentError(received.payload);
  return absl::DataLossError("the agent of the sandbox broke the protocol");
}

std::string Printable(std::string_view text) {
  std::string out(text.substr(0, kPrintableMax));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
  }
  return out;
}

absl::Status AgentError(std::string_view payload) {
  agent::Error error;
  if (!agent::Decode(payload, &error))
    return absl::DataLossError("the agent of the sandbox broke the protocol");
  const absl::StatusCode code = base::ErrnoStatus(error.error, "").code();
  return absl::Status(code == absl::StatusCode::kOk ? absl::StatusCode::kUnknown : code,
                      Printable(error.message));
}

absl::Status AgentRequest(const std::string& run_dir, const std::string& frame,
                          int64_t timeout_ms) {
  ASSIGN_OR_RETURN(AgentConnection connection, AgentConnection::Open(run_dir));
  RETURN_IF_ERROR(connection.Send(frame, timeout_ms));
  return connection.ReceiveOk(timeout_ms);
}

}  // namespace reprise::sandboxd
