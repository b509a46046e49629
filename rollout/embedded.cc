#include "rollout/embedded.h"

#include <filesystem>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/status_macros.h"

namespace reprise::rollout {
namespace {

constexpr absl::Duration kJournalPatience = absl::Seconds(5);
constexpr absl::Duration kJournalRetry = absl::Milliseconds(50);

}  // namespace

absl::StatusOr<std::unique_ptr<Embedded>> Embedded::Start(const EmbeddedOptions& options) {
  std::error_code error;
  std::string state = std::filesystem::absolute(options.state_dir, error).string();
  if (options.state_dir.empty() || error) {
    return absl::InvalidArgumentError("no state directory: give --state");
  }
  std::unique_ptr<Embedded> embedded(new Embedded);
  sandboxd::DaemonOptions sandbox;
  sandbox.state_dir = state + "/sandboxd";
  sandbox.listen = {"unix:" + state + "/sandboxd.sock"};
  sandbox.listen.insert(sandbox.listen.end(), options.listen.begin(), options.listen.end());
  sandbox.token_file = options.token_file;
  sandbox.durability = options.durability;
  sandbox.bind_roots = options.bind_roots;
  sandbox.chunk_images = options.chunk_images;
  sandbox.image_cold = options.image_cold;
  sandbox.image_disk_bytes = options.image_disk_bytes;
  sandbox.helper_dir = options.helper_dir;
  ASSIGN_OR_RETURN(embedded->sandboxd_, sandboxd::Daemon::Start(sandbox));
  DaemonOptions rollout;
  rollout.state_dir = state + "/rolloutd";
  rollout.listen = {"unix:" + state + "/rolloutd.sock"};
  rollout.sandbox_address = embedded->sandbox_address();
  rollout.durability = options.durability;
  rollout.threads = options.threads;
  rollout.prefix_disk = options.prefix_disk;
  rollout.kv_bytes = options.kv_bytes;
  rollout.parallel = options.parallel;
  rollout.retention = options.retention;
  rollout.http = options.http;
  rollout.token_file = options.token_file;
  rollout.models = options.models;
  rollout.thinking = options.thinking;
  // STATE is ours: who else has its journal open only reads it, and soon is done.
  absl::Time deadline = absl::Now() + kJournalPatience;
  while (true) {
    auto rolloutd = Daemon::Start(rollout);
    if (absl::IsUnavailable(rolloutd.status()) && absl::Now() < deadline) {
      absl::SleepFor(kJournalRetry);
      continue;
    }
    ASSIGN_OR_RETURN(embedded->rolloutd_, std::move(rolloutd));
    return embedded;
  }
}

}  // namespace reprise::rollout
