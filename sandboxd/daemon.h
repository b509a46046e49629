// The sandbox daemon as an object: `sandboxd` runs one alone, `reprise up` and the embedded default run one beside
// rolloutd. Owns its parts in start order: store, call log, substrates, call manager, gRPC server, HTTP port.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sandboxd/limits.h"
#include "storage/store.h"

namespace reprise::sandboxd {

struct DaemonOptions {
  std::string state_dir;                // STATE/sandboxd: journal, supervisors' sockets, scratch
  std::vector<std::string> listen;      // gRPC addresses, e.g. "unix:/state/sandboxd.sock", "127.0.0.1:7070"
  std::string http;                     // HOST:PORT of the HTTP port; "" = none
  std::string http_cert, http_key;      // PEM files for TLS on it; both or none
  storage::Durability durability = storage::Durability::kFsync;
  std::vector<std::string> bind_roots;  // host directories below which SandboxSpec.binds may lie; none by default
  std::string helper_dir;               // where reprise-supervisor and reprise-agent are; "" = beside this program
  int function_pool = 4;                // ready workers of the function tier
  int function_max = 64;                // workers of the function tier in all
  bool e2b_internet = false;  // E2B's allow_internet_access (its clients' default) opens the internet
  std::string resolver;  // ADDRESS[:PORT] that the DNS of sandboxes asks; "" = the host's first
  std::string token_file;               // bearer token that TCP clients must show; required to listen on TCP
  std::string containerd_address = "/run/containerd/containerd.sock";  // "" turns the container tier off
  std::string qemu = "/usr/bin/qemu-system-x86_64";  // "" turns the microvm and vm tiers off
  std::string firecracker = "/usr/bin/firecracker";
  std::string vmm = "auto";     // of the microvm tier: "qemu", "firecracker" or "auto"
  std::string guest_dir;        // the guest kernel of scripts/guest-kernel; "" = HELPER_DIR/guest
  int machine_pool = 0;         // machines that wait for a sandbox, of each kind and tier
  uint64_t machine_pool_bytes = 1ull << 30;  // memory of their own that they may have, of each tier
  bool probe_machines = false;  // run the microvm tier's probe guest at the start, not with the first sandbox
  size_t sandboxes_max = kSandboxesMax;  // that are not stopped
  uint64_t memory_bytes_max = 0;   // of the limits of all live sandboxes together; 0 = no bound
  bool chunk_images = false;       // images in chunks, read on demand (container tier)
  std::string image_cold;          // their cold tier: a directory or s3://BUCKET?region=...; "" = none
  uint64_t image_disk_bytes = 0;   // their bound on local disk; 0 = the default
};

class Daemon {
 public:
  // Opens the journal, attaches to sandboxes and calls that outlived the last daemon, listens.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const DaemonOptions& options);
  // Stops listening, detaches from running calls (they go on), closes the journal.
  virtual ~Daemon() = default;
  virtual const std::vector<std::string>& addresses() const = 0;  // as bound
  virtual const std::string& http_address() const = 0;            // "http://HOST:PORT" as bound, or ""
};

}  // namespace reprise::sandboxd
