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
// What the console said before this machine was continued; a template's supervisor writes it.
inline constexpr char kConsoleFile[] = "console";
inline constexpr uint64_t kConfigBytesMax = 1 << 20;
inline constexpr size_t kEndBytesMax = 4096;
inline constexpr size_t kConsoleBytesMax = 256 << 10;  // kept of a console: its end
inline constexpr size_t kConsoleFileBytesMax = 4 * kConsoleBytesMax;
inline constexpr size_t kConsolePieceBytes = 64 << 10;

// Descriptors that a supervisor inherits.
inline constexpr int kReadyFd =
    3;  // written: "step NAME US", then "ok" or "error WORDS"; then closed
inline constexpr int kRamFd = 4;    // memory of a template or of its clone
inline constexpr int kStateFd = 5;  // devices of the template, to begin with them

// Of a Firecracker machine: the disk of its image, wherever that is named.
inline constexpr int kImageFd = 250;

enum class Mode : uint8_t {
  kProbe = 1,     // ends when the kernel is up
  kBoot = 2,      // from nothing
  kTemplate = 3,  // boots into kRamFd, saves into kStateFd when the agent listens, ends
  kClone = 4,     // continues a template
  kRestore = 5,   // continues a template, as the snapshot in VmConfig::snapshot says
};
// Whether the machine's memory begins as that of a template.
inline bool FromTemplate(Mode mode) { return mode == Mode::kClone || mode == Mode::kRestore; }

// Files of a snapshot's directory; the template's memory is made where that was asked for.
inline constexpr char kMemoryPart[] = "memory";    // pages that are not the template's (FORMAT.md)
inline constexpr char kDevicesPart[] = "devices";  // as the VMM writes them
inline constexpr char kConsolePart[] = "console";  // what the console said until then
inline constexpr char kImagePart[] = "image";      // the disk of its image; of a box too
inline constexpr char kTemplateMemoryPart[] = "template-memory";
inline constexpr char kSnapshotDir[] = "snapshot";    // of a box: one that is being made
inline constexpr char kSuspendedDir[] = "suspended";  // of a box: the machine, while it is paused

enum class Board : uint8_t {
  kMicrovm = 0,  // virtio over memory, no screen
  kQ35 = 1,      // a PC: PCI, a BIOS, a screen, a keyboard and a pointer
};

enum class Driver : uint8_t {
  kQemu = 0,
  kFirecracker = 1,  // of Board::kMicrovm, with KVM
};

struct VmConfig {
  uint8_t mode = 0;
  uint8_t driver = 0;
  uint8_t board = 0;
  std::string program;      // of the VMM
  std::string vmm;          // which one that is: what it saves, no other can load
  std::string accelerator;  // "kvm" or "tcg"
  std::string kernel, initramfs;
  std::string image;  // EROFS; "" without (a probe)
  // A guest of its own system (Board::kQ35) boots from `disk` instead, a QCOW2 file with what it
  // wrote over `base`, which has no kernel, initramfs or image of ours. Its agent may never come.
  std::string disk, base, base_format;  // "raw" or "qcow2"
  uint64_t base_bytes = 0;              // of the disk that the guest sees
  std::string seed;                     // a read-only disk for cloud-init; "" without
  uint64_t stop_grace_ms = 0;           // from the power button to the end
  uint64_t memory_mib = 0;
  uint32_t cpus = 1;
  uint64_t tsc_khz = 0;      // for tcg, whose guests cannot measure it
  uint32_t uid = 0;          // as whom the VMM runs; 0: as the supervisor
  uint64_t deadline_ms = 0;  // until it is ready
  std::string template_id;   // whose memory it begins with; "" when it boots
  std::string snapshot;      // kRestore: a directory
  uint8_t ready = 0;  // kClone: it waits for kAdopt, and ends when kReadyFd's other end closes
  // What a clone gets of its own; a ready one with kAdopt.
  std::string hostname;
  uint64_t disk_bytes = 0;
  uint32_t pids = 0;
  Setup setup;
  void Fields(auto& f) {
    f(mode), f(driver), f(board), f(program), f(vmm), f(accelerator), f(kernel), f(initramfs),
        f(image), f(disk), f(base), f(base_format), f(base_bytes), f(seed), f(stop_grace_ms),
        f(memory_mib), f(cpus), f(tsc_khz), f(uid), f(deadline_ms), f(template_id), f(snapshot),
        f(ready), f(hostname), f(disk_bytes), f(pids);
    setup.Fields(f);
  }
};

enum class VmRequest : uint8_t {
  kStatus = 128,       // -> kState
  kPause = 129,        // -> kOk
  kResume = 130,       // -> kOk
  kStop = 131,         // -> kOk, and the supervisor ends
  kConsole = 132,      // ConsoleRequest -> kConsoleData
  kScreenshot = 133,   // ScreenshotRequest -> kOk, with the picture in that file
  kInput = 134,        // Input -> kOk
  kSnapshot = 135,     // SnapshotRequest -> kOk, with the parts in the box's kSnapshotDir
  kAdopt = 136,        // Adoption -> kOk, as soon as the machine is a sandbox's
  kState = 160,        // answer: VmState
  kConsoleData = 161,  // answer: ConsoleData
};
struct VmState {
  uint8_t paused = 0;
  uint8_t agent = 0;  // the guest's agent listens
  uint64_t vmm_pid = 0;
  void Fields(auto& f) { f(paused), f(agent), f(vmm_pid); }
};
struct ConsoleRequest {
  uint64_t from = 0;  // of all bytes that the console ever said
  std::string typed;  // goes to the guest first
  void Fields(auto& f) { f(from), f(typed); }
};
struct ConsoleData {
  uint64_t begin = 0, end = 0;  // of `data`, and of what is there
  std::string data;             // from the first kept byte at or after `from`
  void Fields(auto& f) { f(begin), f(end), f(data); }
};
struct ScreenshotRequest {
  std::string file;  // of the box; made, as PNG
  void Fields(auto& f) { f(file); }
};
struct Adoption {
  std::string hostname;
  uint64_t disk_bytes = 0;
  uint32_t pids = 0;
  void Fields(auto& f) { f(hostname), f(disk_bytes), f(pids); }
};
struct SnapshotRequest {
  uint8_t with_template = 0;  // the template's memory too
  void Fields(auto& f) { f(with_template); }
};
enum class InputKind : uint8_t {
  kKeys = 1,    // `names` pressed in order and let go
  kMove = 2,    // to x, y
  kButton = 3,  // names[0], down or up
  kPower = 4,   // the power button
};
struct Input {
  uint8_t kind = 0;
  std::vector<std::string> names;
  uint8_t down = 0;
  uint32_t x = 0, y = 0;  // of kPointerMax, from the left and the top
  void Fields(auto& f) { f(kind), f(names), f(down), f(x), f(y); }
};
inline constexpr uint32_t kPointerMax = 0x7fff;

inline std::string VmFrame(VmRequest type) {
  return agent::RawFrame(static_cast<agent::FrameType>(type), "");
}

}  // namespace reprise::sandboxd::microvm
