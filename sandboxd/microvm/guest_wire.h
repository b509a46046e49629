// What a guest's init and the supervisor of its machine say to each other over one serial port:
// frames of channels. Channel 0 carries the messages below (framed as in agent/protocol.h); every
// other channel is one connection to the guest's agent, opened by the host, with credit in both
// directions so that a peer which does not read stops nobody else. Both sides decode strictly; the
// host takes every byte as hostile. No dependencies: the guest's init is a static program.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sandboxd/agent/protocol.h"

namespace reprise::sandboxd::microvm {

inline constexpr char kPortName[] = "reprise";  // of the virtio serial port
// Where there is no such port: the stream of init is one vsock connection, which the host opens.
inline constexpr uint32_t kGuestVsockPort = 1024, kGuestCid = 3;
inline constexpr uint32_t kGuestWireVersion = 2;          // told in Hello
inline constexpr uint32_t kMuxDataBytesMax = 32u << 10;   // payload of one frame
inline constexpr uint32_t kMuxWindowBytes = 128u << 10;   // of one channel and direction
inline constexpr uint32_t kMuxChannelsMax = 384;          // at one time
inline constexpr uint32_t kControlBytesMax = 256u << 10;  // of one control message
inline constexpr uint32_t kGuestWordsMax = 300;           // of a reason that a guest gives
inline constexpr uint32_t kEntropyBytes = 64;             // of a Renew

enum class MuxType : uint32_t {
  kData = 1,    // payload: bytes of the channel
  kOpen = 2,    // host to guest; ids only go up
  kClose = 3,   // no more data comes; each side says it once
  kCredit = 4,  // payload: a uint32, bytes that were taken from the channel
};
struct MuxHeader {
  uint32_t channel = 0;
  uint32_t type = 0;
  uint32_t length = 0;  // of the payload
};
static_assert(sizeof(MuxHeader) == 12);

// Messages of channel 0, each a frame with one of these types.
enum class GuestMessage : uint8_t {
  kHello = 1,    // guest: the kernel is up. Hello
  kSetup = 2,    // host: make the root, start the agent. Setup
  kReady = 3,    // guest: the agent listens
  kRenew = 4,    // host: another clock, other entropy, other names. Renew
  kRenewed = 5,  // guest
  kFailed = 6,   // guest: it cannot go on. Failed
  // For a machine that is saved: nothing is on its way between the two while it stands still.
  kHold = 7,      // host, its last word for now: finish what you are saying, say nothing more
  kHeld = 8,      // guest, the last of it
  kGoOn = 9,      // host: as before
  kRestart = 10,  // host, instead of kGoOn: this is a copy, and the channels are the other one's
};

struct Hello {
  uint32_t version = 0;
  std::string kernel;  // its release
  void Fields(auto& f) { f(version), f(kernel); }
};
struct Setup {
  std::string user, working_dir, home;  // as reprise-agent takes them
  std::vector<std::string> env;         // the image's
  uint64_t memory_bytes = 0;            // of everything in the sandbox
  void Fields(auto& f) { f(user), f(working_dir), f(home), f(env), f(memory_bytes); }
};
struct Renew {
  int64_t wall_us = 0;      // since the epoch
  std::string entropy;      // kEntropyBytes, or empty: the clock only
  std::string hostname;     // "": stays
  std::string machine_id;   // for /etc/machine-id where the image has one; "": stays
  uint64_t disk_bytes = 0;  // of what is written over the image; 0: stays
  uint32_t pids = 0;        // processes and threads in the sandbox; 0: stays
  void Fields(auto& f) {
    f(wall_us), f(entropy), f(hostname), f(machine_id), f(disk_bytes), f(pids);
  }
};
struct Failed {
  std::string why;
  void Fields(auto& f) { f(why); }
};

template <typename Message>
std::string GuestFrame(GuestMessage type, Message message) {
  return agent::Frame(static_cast<agent::FrameType>(type), std::move(message));
}
inline std::string GuestFrame(GuestMessage type) {
  return agent::RawFrame(static_cast<agent::FrameType>(type), "");
}

}  // namespace reprise::sandboxd::microvm
