#include "sandboxd/microvm/firecracker_api.h"

#include <errno.h>
#include <fmt/format.h>
#include <poll.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "sandboxd/link/agent_link.h"

namespace reprise::sandboxd::microvm {
namespace {

using nlohmann::json;

constexpr size_t kAnswerBytesMax = 64 << 10;
constexpr int64_t kAwaitPollUs = 2'000;

absl::StatusOr<base::UniqueFd> Connect(const std::string& path) {
  base::UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path))
    return absl::InvalidArgumentError(fmt::format("{} is too long for a socket", path));
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  if (!fd.valid() || connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
    return absl::UnavailableError(fmt::format("connect to {}: {}", path, strerror(errno)));
  return fd;
}

bool Await(int fd, short events, int64_t deadline_us) {
  pollfd item{fd, events, 0};
  const int64_t left_us = deadline_us - base::MonotonicMicros();
  return left_us > 0 && poll(&item, 1, static_cast<int>(left_us / 1000 + 1)) > 0;
}

// The value of a header of this name (lower case), "" when there is none.
std::string Header(std::string_view head, std::string_view name) {
  for (size_t at = head.find("\r\n"); at != std::string_view::npos;) {
    const size_t begin = at + 2, end = std::min(head.find("\r\n", begin), head.size());
    const std::string_view line = head.substr(begin, end - begin);
    if (line.size() > name.size() && line[name.size()] == ':' &&
        strncasecmp(line.data(), name.data(), name.size()) == 0) {
      std::string value(line.substr(name.size() + 1));
      value.erase(0, value.find_first_not_of(' '));
      return value;
    }
    at = end < head.size() ? end : std::string_view::npos;
  }
  return "";
}

}  // namespace

absl::Status FirecrackerApi::Await(int64_t timeout_ms) const {
  const int64_t deadline = base::MonotonicMicros() + timeout_ms * 1000;
  while (true) {
    const absl::Status connected = Connect(socket_).status();
    if (connected.ok() || base::MonotonicMicros() > deadline) return connected;
    usleep(kAwaitPollUs);
  }
}

absl::Status FirecrackerApi::Send(const char* method, const std::string& path,
                                  const std::string& body, int64_t timeout_ms) const {
  const int64_t deadline = base::MonotonicMicros() + timeout_ms * 1000;
  const std::string what = fmt::format("Firecracker, {} {}", method, path);
  auto late = [&] { return absl::DeadlineExceededError(what + ": no answer in time"); };
  auto broken = [&] { return absl::DataLossError(what + ": the answer is no HTTP"); };
  ASSIGN_OR_RETURN(const base::UniqueFd fd, Connect(socket_));
  const std::string request = fmt::format(
      "{} {} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nContent-Type: "
      "application/json\r\nContent-Length: {}\r\n\r\n{}",
      method, path, body.size(), body);
  for (size_t at = 0; at < request.size();) {
    if (!microvm::Await(fd.get(), POLLOUT, deadline)) return late();
    const ssize_t count =
        send(fd.get(), request.data() + at, request.size() - at, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (count <= 0) return absl::UnavailableError(fmt::format("{}: {}", what, strerror(errno)));
    at += static_cast<size_t>(count);
  }
  std::string answer;
  size_t head = std::string::npos, length = 0;
  while (head == std::string::npos || answer.size() < head + 4 + length) {
    if (!microvm::Await(fd.get(), POLLIN, deadline)) return late();
    char buffer[4096];
    const ssize_t count = recv(fd.get(), buffer, sizeof(buffer), MSG_DONTWAIT);
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (count <= 0) return absl::UnavailableError(what + ": the connection ended");
    answer.append(buffer, static_cast<size_t>(count));
    if (answer.size() > kAnswerBytesMax) return broken();
    if (head != std::string::npos || (head = answer.find("\r\n\r\n")) == std::string::npos)
      continue;
    const std::string text = Header(std::string_view(answer).substr(0, head), "content-length");
    std::from_chars(text.data(), text.data() + text.size(), length);
    if (length > kAnswerBytesMax) return broken();
  }
  int status = 0;
  if (!answer.starts_with("HTTP/1.1 ") || answer.size() < 12) return broken();
  std::from_chars(answer.data() + 9, answer.data() + 12, status);
  if (status >= 200 && status < 300) return absl::OkStatus();
  const json fault = json::parse(answer.substr(head + 4), nullptr, false);
  std::string words = "it says nothing";
  if (fault.is_object() && fault.contains("fault_message") && fault["fault_message"].is_string())
    words = fault["fault_message"].get<std::string>();
  return absl::InternalError(fmt::format("{}: {} ({})", what, status, Printable(words)));
}

}  // namespace reprise::sandboxd::microvm
