#include "clients/cli/bulk_run.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/clock.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "clients/cli/bulk_pool.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/output.h"
#include "clients/cli/progress.h"
#include "clients/cli/sandbox_verbs.h"
#include "clients/cli/sockets.h"
#include "clients/cli/wire_json.h"
#include "sandboxd/daemon.h"

namespace reprise::cli {
namespace {

// The sandboxd that the run speaks to; members go in the opposite order.
struct Access {
  std::unique_ptr<sandboxd::Daemon> daemon;  // when it is ours
  std::unique_ptr<sandboxd::SandboxClient> client;
};

absl::StatusOr<Access> Open(const BulkOptions& options) {
  Access access;
  sandboxd::ClientOptions client;
  client.output_bytes_max = options.output_bytes;
  client.unreachable_max = absl::Seconds(options.patience_s);
  ASSIGN_OR_RETURN(client.token, ReadToken(options.target.token_file));
  ASSIGN_OR_RETURN(client.address, SandboxAddress(options.target));
  if (!Answers(client.address)) {
    if (!options.target.server.empty()) {
      return absl::UnavailableError(
          fmt::format("no sandboxd answers at {}: start one with `reprise up --state DIR`, or "
                      "leave out --server",
                      client.address));
    }
    sandboxd::DaemonOptions daemon;
    daemon.state_dir = (std::filesystem::absolute(options.target.state) / "sandboxd").string();
    daemon.listen = {client.address};
    daemon.bind_roots = options.bind_roots;
    daemon.function_pool = std::min(options.parallel, daemon.function_max);
    daemon.function_max = std::max(options.parallel, daemon.function_max);
    ASSIGN_OR_RETURN(access.daemon, sandboxd::Daemon::Start(daemon));
  }
  ASSIGN_OR_RETURN(access.client, sandboxd::SandboxClient::Connect(client));
  return access;
}

std::string Note(const BulkCounts& counts, double seconds) {
  std::string note;
  if (seconds > 0) note += fmt::format("{:.0f}/s", static_cast<double>(counts.done) / seconds);
  if (counts.replayed > 0) note += fmt::format("  {} from the journal", Count(counts.replayed));
  if (counts.errors > 0) note += fmt::format("  {} errors", Count(counts.errors));
  return note;
}

Json CountsJson(const BulkCounts& counts, const BulkOptions& options, double seconds) {
  Json outcomes = Json::object();
  for (const auto& [outcome, count] : counts.outcomes)
    outcomes[OutcomeName(static_cast<sandbox_wire::Outcome>(outcome))] = count;
  return {{"lines", counts.done},    {"exited_0", counts.exited_0}, {"outcomes", outcomes},
          {"errors", counts.errors}, {"replayed", counts.replayed}, {"seconds", seconds},
          {"output", options.out}};
}

void PrintSummary(const BulkCounts& counts, const BulkOptions& options, double seconds) {
  Facts facts;
  for (const auto& [outcome, count] : counts.outcomes) {
    auto which = static_cast<sandbox_wire::Outcome>(outcome);
    if (which == sandbox_wire::OUTCOME_EXITED) {
      facts.Add("exited with 0", Count(counts.exited_0));
      if (count > counts.exited_0)
        facts.Add("exited with another code", Count(count - counts.exited_0));
    } else {
      std::string name = OutcomeName(which);
      std::replace(name.begin(), name.end(), '_', ' ');
      facts.Add(name, Count(count));
    }
  }
  if (counts.errors > 0) facts.Add("refused", Count(counts.errors));
  if (counts.replayed > 0) facts.Add("from the journal", Count(counts.replayed));
  facts.Add("output", options.out);
  double rate = seconds > 0 ? static_cast<double>(counts.done) / seconds : 0;
  Print(fmt::format("{} {} in {}, {:.0f}/s\n\n{}", Count(counts.done),
                    counts.done == 1 ? "line" : "lines", HumanSeconds(seconds), rate,
                    facts.Render()));
}

absl::StatusOr<BulkDefaults> Defaults(BulkOptions* options) {
  BulkDefaults defaults;
  defaults.name =
      options->name.empty() ? std::filesystem::path(options->file).stem().string() : options->name;
  if (absl::Status valid = base::CheckId(defaults.name, "--name"); !valid.ok())
    return UsageError(fmt::format("{}; give another with --name", valid.message()));
  if (defaults.name.size() > kMaxBulkNameBytes)
    return UsageError(fmt::format("--name has more than {} bytes", kMaxBulkNameBytes));
  ASSIGN_OR_RETURN(sandbox_wire::Tier tier, ParseTier(options->tier));
  options->spec.set_tier(tier);
  RETURN_IF_ERROR(AddEnv(options->env, false, options->spec.mutable_env()));
  RETURN_IF_ERROR(AddBinds(options->binds, options->spec.mutable_binds()));
  defaults.spec = options->spec;
  return defaults;
}

}  // namespace

absl::StatusOr<int> RunBulk(const Context& context, BulkOptions options) {
  ASSIGN_OR_RETURN(BulkDefaults defaults, Defaults(&options));
  if (options.target.server.empty() && options.target.state.empty())
    options.target.state = options.out + ".state";
  ASSIGN_OR_RETURN(std::unique_ptr<BulkFile> file, BulkFile::Open(options.file, defaults));
  std::string partial = options.out + ".partial";
  std::filesystem::path parent = std::filesystem::path(options.out).parent_path();
  if (!parent.empty()) RETURN_IF_ERROR(base::MakeDirs(parent.string()));
  base::UniqueFd out(::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!out.valid()) return base::ErrnoStatus(errno, fmt::format("cannot write {}", partial));

  Interrupt interrupt;
  ASSIGN_OR_RETURN(Access access, Open(options));
  BulkPool pool(file.get(), access.client.get(), out.get());
  interrupt.Watch([&] {
    pool.Stop();
    access.client->Shutdown();
  });
  base::Stopwatch watch;
  absl::Status ran;
  {
    Progress progress("bulk");
    ran = pool.Run(options.parallel, [&](const BulkCounts& counts) {
      progress.Update(counts.done, file->size(), Note(counts, watch.ElapsedMillis() / 1000));
    });
  }
  BulkCounts counts = pool.counts();
  if (interrupt.interrupted()) {
    return absl::CancelledError(
        fmt::format("interrupted after {} of {} lines, nothing is lost: the same command goes on",
                    counts.done, file->size()));
  }
  if (absl::IsUnavailable(ran)) {
    return absl::UnavailableError(fmt::format(
        "{} (waited {} s; {} of {} lines are done): start it on the same state, and the "
        "same command goes on",
        ran.message(), options.patience_s, counts.done, file->size()));
  }
  RETURN_IF_ERROR(ran);
  if (::fsync(out.get()) != 0)
    return base::ErrnoStatus(errno, fmt::format("cannot sync {}", partial));
  if (::rename(partial.c_str(), options.out.c_str()) != 0)
    return base::ErrnoStatus(errno, fmt::format("cannot move {} to {}", partial, options.out));
  double seconds = watch.ElapsedMillis() / 1000;
  if (context.json) {
    PrintJson(CountsJson(counts, options, seconds));
  } else {
    PrintSummary(counts, options, seconds);
  }
  if (counts.not_run == 0) return kExitDone;
  return absl::AbortedError(fmt::format("{} of {} lines did not run to their end, the first is {}",
                                        counts.not_run, counts.done, counts.first_error));
}

}  // namespace reprise::cli
