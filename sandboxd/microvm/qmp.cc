#include "sandboxd/microvm/qmp.h"

#include <errno.h>
#include <fmt/format.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "sandboxd/link/agent_link.h"

namespace reprise::sandboxd::microvm {
namespace {

using nlohmann::json;

constexpr size_t kLineBytesMax = 1 << 20;
constexpr int kEventsMax = 10'000;  // before one answer

absl::Status Gone() { return absl::UnavailableError("the monitor of the machine is gone"); }

}  // namespace

absl::StatusOr<std::string> Qmp::ReadLine(int64_t deadline_us) {
  while (true) {
    if (const size_t end = in_.find('\n'); end != std::string::npos) {
      std::string line = in_.substr(0, end);
      in_.erase(0, end + 1);
      return line;
    }
    if (in_.size() > kLineBytesMax)
      return absl::DataLossError("the monitor of the machine sent a line that is too long");
    char buffer[16 << 10];
    const ssize_t count = recv(fd_.get(), buffer, sizeof(buffer), MSG_DONTWAIT);
    if (count > 0) {
      in_.append(buffer, static_cast<size_t>(count));
    } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
      return Gone();
    } else {
      const int64_t left_us = deadline_us - base::MonotonicMicros();
      if (left_us <= 0)
        return absl::DeadlineExceededError("the monitor of the machine does not answer");
      pollfd item{fd_.get(), POLLIN, 0};
      poll(&item, 1, static_cast<int>(left_us / 1000 + 1));
    }
  }
}

absl::Status Qmp::Start(int64_t timeout_ms) {
  ASSIGN_OR_RETURN(const std::string greeting,
                   ReadLine(base::MonotonicMicros() + timeout_ms * 1000));
  if (!json::parse(greeting, nullptr, false).contains("QMP"))
    return absl::DataLossError("the monitor of the machine does not speak QMP");
  return Command("qmp_capabilities", "", -1, timeout_ms).status();
}

absl::StatusOr<std::string> Qmp::Command(const std::string& name, const std::string& arguments,
                                         int pass, int64_t timeout_ms) {
  std::string text =
      arguments.empty() ? fmt::format("{{\"execute\":\"{}\"}}\n", name)
                        : fmt::format("{{\"execute\":\"{}\",\"arguments\":{}}}\n", name, arguments);
  iovec data{text.data(), text.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {};
  if (pass >= 0) {
    message.msg_control = space;
    message.msg_controllen = sizeof(space);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &pass, sizeof(pass));
  }
  // Commands are far smaller than a socket's buffer, and one is under way at a time.
  if (sendmsg(fd_.get(), &message, MSG_NOSIGNAL) != static_cast<ssize_t>(text.size()))
    return Gone();
  const int64_t deadline = base::MonotonicMicros() + timeout_ms * 1000;
  for (int i = 0; i < kEventsMax; ++i) {
    ASSIGN_OR_RETURN(const std::string line, ReadLine(deadline));
    const json answer = json::parse(line, nullptr, false);
    if (!answer.is_object()) return absl::DataLossError("the monitor of the machine broke QMP");
    if (const auto found = answer.find("return"); found != answer.end()) return found->dump();
    if (const auto found = answer.find("error"); found != answer.end()) {
      return absl::InternalError(
          fmt::format("the monitor refused {}: {}", name, Printable(found->dump())));
    }
  }
  return absl::DataLossError("the monitor of the machine sends events only");
}

void Qmp::DropEvents() {
  char buffer[16 << 10];
  for (int i = 0; i < 16; ++i) {
    const ssize_t count = recv(fd_.get(), buffer, sizeof(buffer), MSG_DONTWAIT);
    if (count <= 0) break;
    // Keep the tail: an event may come in two pieces.
    in_.append(buffer, static_cast<size_t>(count));
    const size_t end = in_.rfind('\n');
    if (end != std::string::npos) in_.erase(0, end + 1);
    if (in_.size() > kLineBytesMax) in_.clear();
  }
}

}  // namespace reprise::sandboxd::microvm
