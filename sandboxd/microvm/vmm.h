// A virtual machine monitor as a supervisor sees it: one process, one machine, one byte stream to
// the guest. Drivers differ in how they start and are told what to do.
#pragma once

#include <poll.h>
#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "base/fd.h"
#include "sandboxd/microvm/vm_config.h"

namespace reprise::sandboxd::microvm {

class Vmm {
 public:
  // The process and its machine go with it.
  virtual ~Vmm() = default;

  // Starts the process. The machine boots at once, but for one from a template, which waits for
  // Load.
  virtual absl::Status Launch(const VmConfig& config) = 0;
  // Ends the process and its machine; Launch may start another.
  virtual void End() = 0;
  // Continues what Save wrote; the machine stays paused. `state_fd` is read from its position.
  virtual absl::Status Load(int state_fd) = 0;
  // Pauses the machine and writes its devices; its memory is in the file that it was started with.
  virtual absl::Status Save(int state_fd) = 0;
  // Of a paused machine from a template: writes what it has of its own to the files kMemoryPart and
  // kDevicesPart of `dir`, which are not there yet. Nothing is on stable storage then.
  virtual absl::Status SaveTo(const std::string& dir) = 0;
  // Instead of Load: continues what SaveTo wrote; the machine stays paused.
  virtual absl::Status LoadFrom(const std::string& dir) = 0;
  virtual absl::Status Pause() = 0;
  virtual absl::Status Resume() = 0;

  // The guest's serial port, once; not blocking.
  virtual base::UniqueFd TakePort() = 0;
  virtual pid_t pid() const = 0;
  // Descriptors that Attend wants to be called for.
  virtual void AddPollFds(std::vector<pollfd>* fds) const = 0;
  // Takes what the process says; never blocks.
  virtual void Attend() = 0;
  // The last printable words of the process and of its machine's console, on one line.
  virtual std::string LastWords() const = 0;

  // The console from byte `from` of all that it said; at most kConsolePieceBytes.
  virtual ConsoleData Console(uint64_t) const { return {}; }
  // What was said before this process had the machine.
  virtual void BeginConsole(std::string) {}
  // RESOURCE_EXHAUSTED when the guest does not take it now.
  virtual absl::Status TypeAtConsole(std::string_view) { return NoSuchPart("console"); }
  // Writes the screen as PNG to a file that is open for writing only.
  virtual absl::Status Screenshot(int) { return NoSuchPart("screen"); }
  virtual absl::Status Send(const Input&) { return NoSuchPart("keyboard"); }

 protected:
  static absl::Status NoSuchPart(const char* part) {
    return absl::UnimplementedError(std::string("this machine has no ") + part);
  }
};

std::unique_ptr<Vmm> MakeQemu();
std::unique_ptr<Vmm> MakeFirecracker();

}  // namespace reprise::sandboxd::microvm
