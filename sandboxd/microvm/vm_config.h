// What the daemon tells a supervisor at its start (the file "config" in the box directory), and
// what it asks later over the socket in the directory "control" there: frames as in
// agent/protocol.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sandboxd/agent/protocol.h"
#include "sandboxd/microvm/guest_wire.h"

namespace reprise::sandboxd::microvm {

inline constexpr char kConfigFile[] = "config";
inline constexpr char kEndFile[] = "end";    // why the machine ended; its supervisor wrote it
inline constexpr char kLockFile[] = "lock";  // held as long as the supervisor or its VMM lives
inline constexpr char kControlDir[] = "control";
inline constexpr size_t kEndBytesMax = 4096;

// Descriptors that a supervisor inherits.
inline constexpr int kReadyFd =
    3;  // written: "step NAME US", then "ok" or "error WORDS"; then closed
inline constexpr int kRamFd = 4;    // memory of a template or of its clone
inline constexpr int kStateFd = 5;  // devices of the same

enum class Mode : uint8_t {
  kProbe = 1,     // ends when the kernel is up
  kBoot = 2,      // from nothing
  kTemplate = 3,  // boots into kRamFd, saves into kStateFd when the agent listens, ends
  kClone = 4,     // continues a template
};

struct VmConfig {
  uint8_t mode = 0;
  std::string program;      // of the VMM
  std::string accelerator;  // "kvm" or "tcg"
  std::string kernel, initramfs;
  std::string image;  // EROFS; "" without (a probe)
  uint64_t memory_mib = 0;
  uint32_t cpus = 1;
  uint64_t tsc_khz = 0;      // for tcg, whose guests cannot measure it
  uint32_t uid = 0;          // as whom the VMM runs; 0: as the supervisor
  uint64_t deadline_ms = 0;  // until it is ready
  // What a clone gets of its own.
  std::string hostname;
  uint64_t disk_bytes = 0;
  uint32_t pids = 0;
  Setup setup;
  void Fields(auto& f) {
    f(mode), f(program), f(accelerator), f(kernel), f(initramfs), f(image), f(memory_mib), f(cpus),
        f(tsc_khz), f(uid), f(deadline_ms), f(hostname), f(disk_bytes), f(pids);
    setup.Fields(f);
  }
};

enum class VmRequest : uint8_t {
  kStatus = 128,  // -> kState
  kPause = 129,   // -> kOk
  kResume = 130,  // -> kOk
  kStop = 131,    // -> kOk, and the supervisor ends
  kState = 160,   // answer: VmState
};
struct VmState {
  uint8_t paused = 0;
  uint64_t vmm_pid = 0;
  void Fields(auto& f) { f(paused), f(vmm_pid); }
};

inline std::string VmFrame(VmRequest type) {
  return agent::RawFrame(static_cast<agent::FrameType>(type), "");
}

}  // namespace reprise::sandboxd::microvm
