#include "clients/cli/daemons.h"

#include <fmt/format.h>

#include <filesystem>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status_macros.h"
#include "clients/cli/context.h"
#include "clients/cli/sockets.h"

namespace reprise::cli {
namespace {

constexpr absl::Duration kStartPatience = absl::Seconds(5);
constexpr absl::Duration kStartRetry = absl::Milliseconds(50);

// The daemon at an address, when the target names one or its state directory is served.
absl::StatusOr<bool> Attach(const RolloutTarget& target, RolloutAccess* access) {
  RETURN_IF_ERROR(CheckTarget(target));
  access->address = target.server.empty() ? SocketOf(target.state, "rolloutd.sock") : target.server;
  if (!Answers(access->address)) {
    if (target.server.empty()) return false;
    return absl::UnavailableError(
        fmt::format("no rolloutd answers at {}: start one with `reprise up --state DIR`, or leave "
                    "out --server",
                    target.server));
  }
  access->client = rollout::RolloutClient::Connect(access->address);
  return true;
}

absl::StatusOr<RolloutAccess> TryToRead(const RolloutTarget& target) {
  RolloutAccess access;
  ASSIGN_OR_RETURN(bool attached, Attach(target, &access));
  if (attached) return access;
  std::error_code ignored;
  std::string state = std::filesystem::absolute(target.state, ignored).string();
  if (!std::filesystem::exists(state + "/rolloutd/journal", ignored)) {
    return absl::NotFoundError(
        fmt::format("{} holds no rollouts: is it the directory that --state named when they ran?",
                    target.state));
  }
  // Its socket lies elsewhere, so that nobody takes it for the daemon of the state directory.
  access.scratch = std::make_unique<base::ScratchDir>("reprise");
  rollout::DaemonOptions options;
  options.state_dir = state + "/rolloutd";
  options.listen = {fmt::format("unix:{}/r.sock", access.scratch->path())};
  options.sandbox_address = SocketOf(target.state, "sandboxd.sock");
  options.resume_jobs = false;
  ASSIGN_OR_RETURN(access.reader, rollout::Daemon::Start(options));
  access.address = access.reader->addresses()[0];
  access.client = rollout::RolloutClient::Connect(access.address);
  return access;
}

}  // namespace

absl::Status CheckTarget(const RolloutTarget& target) {
  if (!target.server.empty() || !target.state.empty()) return absl::OkStatus();
  return UsageError("no state directory: give --state DIR, or --server ADDR of a running rolloutd");
}

absl::StatusOr<RolloutAccess> OpenToRun(const RolloutTarget& target) {
  RolloutAccess access;
  ASSIGN_OR_RETURN(bool attached, Attach(target, &access));
  if (attached) return access;
  rollout::EmbeddedOptions options;
  options.state_dir = target.state;
  options.threads = target.threads;
  options.parallel = target.parallel;
  options.bind_roots = target.bind_roots;
  ASSIGN_OR_RETURN(access.embedded, rollout::Embedded::Start(options));
  access.address = access.embedded->rollout_address();
  access.client = rollout::RolloutClient::Connect(access.address);
  return access;
}

absl::StatusOr<RolloutAccess> OpenToRead(const RolloutTarget& target) {
  absl::Time deadline = absl::Now() + kStartPatience;
  while (true) {
    absl::StatusOr<RolloutAccess> access = TryToRead(target);
    // A daemon that starts holds the journal before it answers.
    if (!absl::IsUnavailable(access.status()) || !target.server.empty() || absl::Now() >= deadline)
      return access;
    absl::SleepFor(kStartRetry);
  }
}

}  // namespace reprise::cli
