// What machines run on here: KVM, or QEMU's emulation. Found by running a small guest with a
// deadline, because a /dev/kvm that opens proves nothing; remembered in a file for this boot of
// this host, as long as the VMM stays the same.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace reprise::sandboxd::microvm {

struct Accelerator {
  std::string name;      // "kvm" or "tcg"
  std::string reason;    // why it is this one
  uint64_t tsc_khz = 0;  // of this host
};

// Which VMM a program is: its path, size and time.
std::string VmmKey(const std::string& program);

class AcceleratorProbe {
 public:
  // Runs a guest that ends when its kernel is up.
  using Boot = std::function<absl::Status(const Accelerator& accelerator, int64_t deadline_ms)>;

  // `path`: the file that remembers. `vmm`: the program that runs guests.
  AcceleratorProbe(std::string path, std::string vmm, Boot boot)
      : path_(std::move(path)), vmm_(std::move(vmm)), boot_(std::move(boot)) {}

  // Probes where nothing is remembered; others wait meanwhile. FAILED_PRECONDITION when no guest
  // runs here, with the reason of each accelerator.
  absl::StatusOr<Accelerator> Get();
  // What is known without running anything.
  std::optional<Accelerator> Known();

 private:
  std::string HostKey() const;
  void Recall() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Accelerator> Probe() const;

  const std::string path_, vmm_;
  const Boot boot_;
  absl::Mutex probe_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);  // held while guests run
  absl::Mutex mutex_;
  bool recalled_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Accelerator> known_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace reprise::sandboxd::microvm
