#include "rollout/embedded.h"

#include <filesystem>

#include "base/status_macros.h"

namespace reprise::rollout {

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
  sandbox.durability = options.durability;
  sandbox.bind_roots = options.bind_roots;
  sandbox.helper_dir = options.helper_dir;
  ASSIGN_OR_RETURN(embedded->sandboxd_, sandboxd::Daemon::Start(sandbox));
  DaemonOptions rollout;
  rollout.state_dir = state + "/rolloutd";
  rollout.listen = {"unix:" + state + "/rolloutd.sock"};
  rollout.sandbox_address = embedded->sandbox_address();
  rollout.durability = options.durability;
  rollout.threads = options.threads;
  ASSIGN_OR_RETURN(embedded->rolloutd_, Daemon::Start(rollout));
  return embedded;
}

}  // namespace reprise::rollout
