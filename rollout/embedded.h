// Both daemons in one process, for a command that was given no address: sandboxd first, because
// tiers fork while a process has few threads, then rolloutd beside it. Their state lies in STATE,
// as with daemons of their own.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "rollout/daemon.h"
#include "sandboxd/daemon.h"

namespace reprise::rollout {

struct EmbeddedOptions {
  std::string state_dir;  // STATE; holds sandboxd/ and rolloutd/, made when missing
  storage::Durability durability = storage::Durability::kFsync;
  int threads = 0;                      // of the engine; 0 = one a core
  std::vector<std::string> bind_roots;  // host directories below which sandboxes may bind
  bool chunk_images = false;            // as sandboxd's, with the two below
  std::string image_cold;
  uint64_t image_disk_bytes = 0;
  std::string helper_dir;             // as sandboxd's
  std::vector<std::string> listen;    // addresses of sandboxd beside STATE/sandboxd.sock
  std::string token_file;             // as sandboxd's, and of rolloutd's HTTP port
  std::string http;                   // HOST:PORT of rolloutd's HTTP port; "" = none
  std::vector<std::string> models;    // checkpoint directories that it serves
  std::string thinking = "thinking";  // as rolloutd's
  engine::ParallelOptions parallel;       // likewise
  int64_t kv_bytes = 0;                   // likewise
  engine::PrefixDiskOptions prefix_disk;  // likewise
  RetentionOptions retention;             // likewise
};

class Embedded {
 public:
  // Goes on with every unfinished job of STATE. REQUIRES: the process has no other threads yet.
  // FAILED_PRECONDITION or UNAVAILABLE when another process holds STATE.
  static absl::StatusOr<std::unique_ptr<Embedded>> Start(const EmbeddedOptions& options);

  const std::string& sandbox_address() const { return sandboxd_->addresses()[0]; }
  const std::string& rollout_address() const { return rolloutd_->addresses()[0]; }
  const std::string& http_address() const { return rolloutd_->http_address(); }
  // All that sandboxd listens on, as bound.
  const std::vector<std::string>& sandbox_addresses() const { return sandboxd_->addresses(); }

 private:
  Embedded() = default;
  std::unique_ptr<sandboxd::Daemon> sandboxd_;
  std::unique_ptr<Daemon> rolloutd_;
};

}  // namespace reprise::rollout
