#include "sandboxd/microvm/mux.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

namespace reprise::sandboxd::microvm {
namespace {

constexpr size_t kPortReadBytes = 128 << 10;
constexpr int kPortReadsAStep = 8;
constexpr size_t kPortQueueBytes = 256 << 10;  // no local socket is read above it
constexpr uint32_t kCreditStep = kMuxWindowBytes / 4;

}  // namespace

bool Mux::Broken(const char* why) {
  why_ = why;
  return false;
}

void Mux::AddPollFds(std::vector<pollfd>* fds) const {
  fds->push_back({port_.get(), static_cast<short>(POLLIN | (out_.empty() ? 0 : POLLOUT)), 0});
  if (held_) return;
  for (const auto& [id, channel] : channels_) {
    if (!channel.local.valid()) continue;
    short events = channel.to_local.empty() ? 0 : POLLOUT;
    if (channel.credit > 0 && out_.size() < kPortQueueBytes) events |= POLLIN;
    fds->push_back({channel.local.get(), events, 0});
  }
}

bool Mux::Step() {
  if (!port_.valid()) return true;
  if (!ReadPort()) return false;
  for (auto it = channels_.begin(); !held_ && it != channels_.end();) {
    Pump(it->first, it->second);
    const bool over = it->second.close_sent && it->second.close_got;
    it = over ? channels_.erase(it) : std::next(it);
  }
  return WritePort();
}

bool Mux::Open(agent::Fd connection) {
  if (full()) return false;
  const uint32_t id = next_id_++;
  Put(id, MuxType::kOpen, "");
  channels_[id].local = std::move(connection);
  return true;
}

void Mux::Restart() {
  channels_.clear();
  next_id_ = 1;
  held_ = false;
}

void Mux::Send(const std::string& frame) {
  for (size_t at = 0; at < frame.size(); at += kMuxDataBytesMax)
    Put(0, MuxType::kData, std::string_view(frame).substr(at, kMuxDataBytesMax));
}

void Mux::Put(uint32_t channel, MuxType type, std::string_view payload) {
  const MuxHeader header{channel, static_cast<uint32_t>(type),
                         static_cast<uint32_t>(payload.size())};
  out_.append(reinterpret_cast<const char*>(&header), sizeof(header));
  out_ += payload;
}

bool Mux::ReadPort() {
  std::string buffer(kPortReadBytes, '\0');
  for (int round = 0; round < kPortReadsAStep; ++round) {
    const ssize_t count = read(port_.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) return true;
    // A guest's port reads as empty until the machine's other side is there.
    if (count == 0 && connect_) return true;
    // A saved machine's stream ends; its host comes back with another.
    if (count < 0 && connect_) {
      port_.Reset();
      return true;
    }
    if (count <= 0) return Broken("its machine closed the serial port");
    in_.append(buffer, 0, static_cast<size_t>(count));
    if (!TakeFrames()) return false;
  }
  return true;
}

bool Mux::WritePort() {
  size_t at = 0;
  while (at < out_.size()) {
    const ssize_t count =
        write(port_.get(), out_.data() + at, std::min<size_t>(out_.size() - at, kMuxDataBytesMax));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) break;
    if (count < 0) return Broken("its machine closed the serial port");
    if (count == 0) break;
    at += static_cast<size_t>(count);
  }
  out_.erase(0, at);
  return true;
}

bool Mux::TakeFrames() {
  size_t at = 0;
  MuxHeader header;
  while (in_.size() - at >= sizeof(header)) {
    memcpy(&header, in_.data() + at, sizeof(header));
    if (header.length > kMuxDataBytesMax) return Broken("the guest sent a frame that is too long");
    if (in_.size() - at - sizeof(header) < header.length) break;
    const std::string_view payload =
        std::string_view(in_).substr(at + sizeof(header), header.length);
    if (!TakeFrame(header, payload)) return false;
    at += sizeof(header) + header.length;
  }
  in_.erase(0, at);
  return true;
}

bool Mux::TakeFrame(const MuxHeader& header, std::string_view payload) {
  const auto type = static_cast<MuxType>(header.type);
  if (header.channel == 0) {
    if (type != MuxType::kData) return Broken("the guest broke the serial protocol");
    return TakeControl(payload);
  }
  if (type == MuxType::kOpen) {
    // Ids only go up, so none is ever mistaken for one that was closed.
    if (!connect_ || header.channel < next_id_ || full() || !payload.empty())
      return Broken("the guest broke the serial protocol");
    next_id_ = header.channel + 1;
    Channel& channel = channels_[header.channel];
    channel.local = connect_();
    if (!channel.local.valid()) CloseLocal(header.channel, channel);
    return true;
  }
  auto found = channels_.find(header.channel);
  if (found == channels_.end() || found->second.close_got)
    return Broken("the guest named a channel that is not open");
  Channel& channel = found->second;
  switch (type) {
    case MuxType::kData:
      if (payload.size() > channel.window) return Broken("the guest sent more than its credit");
      channel.window -= static_cast<uint32_t>(payload.size());
      if (channel.local.valid()) channel.to_local += payload;
      return true;
    case MuxType::kClose:
      if (!payload.empty()) break;
      channel.close_got = true;
      return true;
    case MuxType::kCredit: {
      uint32_t credit = 0;
      if (payload.size() != sizeof(credit)) break;
      memcpy(&credit, payload.data(), sizeof(credit));
      if (credit > kMuxWindowBytes - channel.credit) break;
      channel.credit += credit;
      return true;
    }
    default:
      break;
  }
  return Broken("the guest broke the serial protocol");
}

bool Mux::TakeControl(std::string_view payload) {
  control_pending_ += payload.size();
  if (control_pending_ > kControlBytesMax)
    return Broken("the guest sent a message that is too long");
  control_in_.Append(payload);
  agent::FrameType type;
  std::string message;
  while (true) {
    switch (control_in_.Pop(&type, &message)) {
      case agent::FrameReader::Next::kNeedMore:
        return true;
      case agent::FrameReader::Next::kMalformed:
        return Broken("the guest broke the serial protocol");
      case agent::FrameReader::Next::kFrame:
        control_pending_ = 0;
        if (!control_(static_cast<GuestMessage>(type), message))
          return Broken("the guest sent a message that may not come now");
    }
  }
}

// Between one channel and its socket, both ways.
void Mux::Pump(uint32_t id, Channel& channel) {
  while (channel.local.valid() && !channel.to_local.empty()) {
    const ssize_t count = send(channel.local.get(), channel.to_local.data(),
                               channel.to_local.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) break;
    if (count < 0) {
      CloseLocal(id, channel);
      return;
    }
    channel.to_local.erase(0, static_cast<size_t>(count));
    channel.taken += static_cast<uint32_t>(count);
  }
  if (channel.local.valid() && channel.close_got && channel.to_local.empty()) {
    CloseLocal(id, channel);
    return;
  }
  if (channel.taken >= kCreditStep && channel.local.valid() && !channel.close_got) {
    channel.window += channel.taken;
    Put(id, MuxType::kCredit,
        std::string_view(reinterpret_cast<const char*>(&channel.taken), sizeof(channel.taken)));
    channel.taken = 0;
  }
  char buffer[kMuxDataBytesMax];
  while (channel.local.valid() && channel.credit > 0 && !channel.close_got &&
         out_.size() < kPortQueueBytes) {
    const ssize_t count = recv(channel.local.get(), buffer,
                               std::min<size_t>(sizeof(buffer), channel.credit), MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) {
      CloseLocal(id, channel);
      return;
    }
    channel.credit -= static_cast<uint32_t>(count);
    Put(id, MuxType::kData, std::string_view(buffer, static_cast<size_t>(count)));
  }
}

void Mux::CloseLocal(uint32_t id, Channel& channel) {
  channel.local.Reset();
  channel.to_local.clear();
  if (!channel.close_sent) Put(id, MuxType::kClose, "");
  channel.close_sent = true;
}

}  // namespace reprise::sandboxd::microvm
