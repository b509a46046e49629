// The initramfs of our guests: reprise-guest as init, reprise-agent, and the kernel's modules in
// the order in which they are loaded. Uncompressed: an emulated guest would spend longer on
// unpacking.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sandboxd/microvm/vm_config.h"

namespace reprise::sandboxd::microvm {

// The guest kernel and what goes with it, as scripts/guest-kernel lays it out.
struct GuestFiles {
  std::string kernel;       // an ELF image
  std::string modules_dir;  // NAME.ko
  std::string guest_init;   // reprise-guest
  std::string agent;        // reprise-agent
};

// `vsock`: whether guests talk over it (Firecracker).
// NOT_FOUND naming the first file that is missing for guests on this board, and how to get it.
absl::StatusOr<GuestFiles> FindGuestFiles(const std::string& guest_dir,
                                          const std::string& helper_dir, Board board,
                                          bool vsock = false);

// Writes the archive for this board to `path`, whole or not at all; readable for every user.
absl::Status WriteInitramfs(const GuestFiles& files, Board board, bool vsock,
                            const std::string& path);

}  // namespace reprise::sandboxd::microvm
