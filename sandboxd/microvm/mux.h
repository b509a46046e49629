// One end of the serial port: cuts the byte stream into channels and carries each between the port
// and a local socket. Single-threaded, never blocks; the owner polls. The same code runs at both
// ends, and neither trusts the other.
#pragma once

#include <poll.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "sandboxd/agent/os.h"
#include "sandboxd/microvm/guest_wire.h"

namespace reprise::sandboxd::microvm {

class Mux {
 public:
  // Takes a control message; false when it is not one that may come now.
  using Control = std::function<bool(GuestMessage type, const std::string& payload)>;
  // Guest only: a new connection to the agent, not blocking; not valid refuses the channel.
  using Connect = std::function<agent::Fd()>;

  // `port` does not block. The host passes no `connect`.
  Mux(agent::Fd port, Control control, Connect connect = {})
      : port_(std::move(port)), control_(std::move(control)), connect_(std::move(connect)) {}

  // What must be polled before the next Step.
  void AddPollFds(std::vector<pollfd>* fds) const;
  // Moves what can be moved. False when the other end broke the protocol or the port ended; why()
  // says which.
  bool Step();
  // Host: carries `connection` (not blocking) to the guest's agent. False: no room now.
  bool Open(agent::Fd connection);
  // Queues a control frame.
  void Send(const std::string& frame);

  // From now on nothing new is said: what is queued still leaves, local sockets wait.
  void Hold() { held_ = true; }
  void GoOn() { held_ = false; }
  // Guest, held: another host begins anew, and no channel of the last one is left.
  void Restart();
  // Host, held: goes on at another port; not valid: with none, until there is one.
  void SetPort(agent::Fd port) { port_ = std::move(port); }

  // No channel may be opened now.
  bool full() const { return held_ || channels_.size() >= kMuxChannelsMax; }
  bool idle() const { return out_.empty() && channels_.empty(); }
  const std::string& why() const { return why_; }

 private:
  struct Channel {
    agent::Fd local;
    std::string to_local;               // from the port, at most one window
    uint32_t credit = kMuxWindowBytes;  // that may still be sent
    uint32_t taken = 0;                 // written to `local`, not yet credited
    uint32_t window = kMuxWindowBytes;  // that the other end may still send
    bool close_sent = false, close_got = false;
  };

  bool ReadPort();
  bool WritePort();
  bool TakeFrames();
  bool TakeFrame(const MuxHeader& header, std::string_view payload);
  bool TakeControl(std::string_view payload);
  void Pump(uint32_t id, Channel& channel);
  void CloseLocal(uint32_t id, Channel& channel);
  void Put(uint32_t channel, MuxType type, std::string_view payload);
  bool Broken(const char* why);

  agent::Fd port_;
  const Control control_;
  const Connect connect_;
  std::map<uint32_t, Channel> channels_;
  uint32_t next_id_ = 1;  // host: of the next channel; guest: no lower id may be opened
  std::string in_, out_;
  agent::FrameReader control_in_;
  size_t control_pending_ = 0;  // bytes of a control message that is not complete
  bool held_ = false;
  std::string why_;
};

}  // namespace reprise::sandboxd::microvm
