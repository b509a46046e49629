#include "sandboxd/link/call_link.h"

#include <errno.h>
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/format.h"
#include "base/status_macros.h"
#include "sandboxd/link/call_messages.h"

namespace reprise::sandboxd {
namespace {

using agent::FrameType;

constexpr uint32_t kFirstEvents = EPOLLIN | EPOLLOUT;

absl::Status BrokenProtocol() {
  return absl::DataLossError("the agent of the sandbox broke the protocol");
}

}  // namespace

CallLink::CallLink(AgentEndpoint endpoint, std::string call_id, AgentConnection connection,
                   uint64_t tag, OutputPosition from, std::unique_ptr<CallSink> sink)
    : endpoint_(std::move(endpoint)),
      call_id_(std::move(call_id)),
      tag_(tag),
      connection_(std::move(connection)),
      sink_(std::move(sink)),
      next_{from.stdout_offset, from.stderr_offset} {}

void CallLink::SetPlace(int epoll_fd, uint64_t id) {
  absl::MutexLock lock(&mutex_);
  epoll_fd_ = epoll_fd;
  id_ = id;
  watched_ = kFirstEvents;
}

bool CallLink::OnEvent() {
  if (!detached_) {
    if (absl::Status status = Take(); !status.ok()) {
      sandbox::Result result;
      result.set_outcome(sandbox::OUTCOME_SANDBOX_LOST);
      result.set_message(fmt::format("the sandbox died under the call: {}", status.message()));
      End(std::move(result));
      return false;
    }
  }
  absl::MutexLock lock(&mutex_);
  begun_ = true;
  const bool open = Flush();
  Watch();
  return open && !(detached_ && out_.empty());
}

// All frames of one portion: none may stay behind, because only the socket wakes the reactor.
absl::Status CallLink::Take() {
  AgentConnection::Received frame;
  for (const bool filled : {false, true}) {
    if (filled) RETURN_IF_ERROR(connection_.Fill());
    while (!detached_) {
      ASSIGN_OR_RETURN(const bool whole, connection_.Pop(&frame));
      if (!whole) break;
      RETURN_IF_ERROR(Handle(frame));
    }
  }
  return absl::OkStatus();
}

absl::Status CallLink::Handle(const AgentConnection::Received& frame) {
  if (ended_) return BrokenProtocol();
  if (frame.type == FrameType::kOutput) {
    agent::Output output;
    if (!agent::Decode(frame.payload, &output) || output.stream > 1 ||
        output.data.size() > agent::kDataBytesMax || output.offset != next_[output.stream]) {
      return BrokenProtocol();
    }
    next_[output.stream] += output.data.size();
    sink_->OnOutput(output.stream == 0 ? sandbox::STREAM_STDOUT : sandbox::STREAM_STDERR,
                    output.offset, output.data);
    return absl::OkStatus();
  }
  agent::End end;
  if (frame.type != FrameType::kEnd || !agent::Decode(frame.payload, &end)) return BrokenProtocol();
  sandbox::Result result = ToResult(end);
  if (endpoint_.refine) endpoint_.refine(tag_, &result);
  End(std::move(result));
  return absl::OkStatus();
}

// The connection stays for the release.
void CallLink::End(sandbox::Result result) {
  if (!std::exchange(ended_, true) && !detached_) sink_->OnEnd(std::move(result));
}

void CallLink::Acknowledge(sandbox::Stream stream, uint64_t upto) {
  absl::MutexLock lock(&mutex_);
  uint64_t& wanted = ack_wanted_[stream == sandbox::STREAM_STDERR ? 1 : 0];
  if (upto <= wanted) return;
  wanted = upto;
  (void)Flush();  // a broken connection shows on the reactor's thread
  Watch();
}

void CallLink::Release() {
  absl::MutexLock lock(&mutex_);
  release_wanted_ = true;
  (void)Flush();
  Watch();
}

bool CallLink::Detach() {
  detached_ = true;
  absl::MutexLock lock(&mutex_);
  if (broken_ || (out_.empty() && !release_wanted_)) return true;
  Watch();
  return false;
}

// Newer acknowledgements replace older ones that were not begun, so this queue never grows.
bool CallLink::Flush() {
  while (!broken_) {
    if (out_.empty()) {
      for (uint8_t stream = 0; stream < 2; ++stream) {
        if (ack_wanted_[stream] == ack_sent_[stream]) continue;
        out_ += agent::Frame(FrameType::kAck, agent::Ack{stream, ack_wanted_[stream]});
        ack_sent_[stream] = ack_wanted_[stream];
      }
      if (std::exchange(release_wanted_, false)) out_ += agent::RawFrame(FrameType::kRelease, "");
      if (out_.empty()) return true;
    }
    const ssize_t count =
        send(connection_.fd(), out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) return true;
    if (count < 0) {
      broken_ = true;
      out_.clear();
      break;
    }
    out_.erase(0, static_cast<size_t>(count));
  }
  return false;
}

void CallLink::Watch() {
  uint32_t wanted = detached_ ? 0u : static_cast<uint32_t>(EPOLLIN);
  if (!begun_ || !out_.empty()) wanted |= EPOLLOUT;
  if (epoll_fd_ < 0 || wanted == watched_) return;
  epoll_event event{};
  event.events = wanted;
  event.data.u64 = id_;
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, connection_.fd(), &event) == 0) watched_ = wanted;
}

}  // namespace reprise::sandboxd
