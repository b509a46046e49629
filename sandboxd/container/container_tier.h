// The container tier: each sandbox is one OCI container under containerd, with reprise-agent as its
// init. containerd's shim owns the container and the agent owns its calls, so both live on when the
// daemon dies.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

struct ContainerTierOptions {
  std::string
      state_dir;  // private to the daemon; the tier keeps its files in <state_dir>/container
  std::string helper_dir;          // where reprise-agent is
  std::string containerd_address;  // socket, e.g. "/run/containerd/containerd.sock"
  // Set: images are kept in chunks and read on demand, from <state_dir>/images; new ones are
  // imported there, those that containerd has stay usable.
  bool chunk_images = false;
  std::string cold = "";        // cold tier of the chunks, as storage::OpenColdTier takes it
  uint64_t disk_bytes_max = 0;  // bound of the chunks on local disk; 0: the catalogue's default
  std::string resolver = "";    // ADDRESS:PORT that the DNS of sandboxes with a network asks
};

// Does not need containerd to run: Describe tells what is missing, and every verb answers
// UNAVAILABLE until it is there. Errors: the state directory cannot be used.
absl::StatusOr<std::unique_ptr<Substrate>> MakeContainerTier(const ContainerTierOptions& options);

}  // namespace reprise::sandboxd
