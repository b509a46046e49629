#include "clients/cli/rollout_run.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/output.h"
#include "clients/cli/progress.h"
#include "clients/cli/wire_json.h"
#include "rollout/run_job.h"

namespace reprise::cli {
namespace {

constexpr char kOutputName[] = "trajectories.jsonl";

// "--state DIR" or "--server ADDR", as the next line needs it.
std::string TargetFlags(const RolloutTarget& target) {
  if (!target.server.empty()) return fmt::format("--server {}", ShellQuote(target.server));
  return fmt::format("--state {}", ShellQuote(target.state));
}

std::string Note(const rollout_wire::Job& job) {
  std::string note;
  if (job.state() != "running") note += job.state() + "  ";
  if (double rate = rollout::TokensPerSecond(job); rate > 0)
    note += fmt::format("{} tokens/s  ", Count(static_cast<uint64_t>(rate)));
  note += fmt::format("{} tool calls", Count(job.tool_calls()));
  if (job.rewarded() > 0) note += fmt::format("  mean reward {:.3f}", job.mean_reward());
  return note;
}

void PrintSummary(const Context& context, const RolloutTarget& target,
                  const rollout::RunJobSummary& summary, double seconds) {
  const rollout_wire::Job& job = summary.job;
  Facts facts;
  std::string trajectories = Count(job.trajectories());
  if (job.sealed() < job.trajectories())
    trajectories = fmt::format("{} of {}", Count(job.sealed()), trajectories);
  if (job.failed() > 0) trajectories += fmt::format(", {} without a result", Count(job.failed()));
  if (job.resumed_trajectories() > 0)
    trajectories += fmt::format(", {} resumed where they stood", Count(job.resumed_trajectories()));
  facts.Add("trajectories", trajectories);
  std::string tokens = fmt::format("{} sampled", Count(job.sampled_tokens()));
  if (job.decoded_this_run() < job.sampled_tokens())
    tokens += fmt::format(", {} of them now", Count(job.decoded_this_run()));
  facts.Add("tokens", tokens);
  if (summary.tokens_per_second > 0)
    facts.Add("tokens/s", fmt::format("{:.0f}", summary.tokens_per_second));
  facts.Add("tool calls", Count(job.tool_calls()));
  facts.Add("mean reward", job.rewarded() > 0 ? fmt::format("{:.4f}", job.mean_reward()) : "none");
  facts.Add("output", summary.output_path);
  Print(fmt::format("job {} {}, {} here\n\n{}\n", job.job_id(), job.state(), HumanSeconds(seconds),
                    facts.Render()));
  if (job.sealed() == 0) return;
  Print(fmt::format("next: {} trajectory ls --job {} {}\n", context.program,
                    ShellQuote(job.job_id()), TargetFlags(target)));
}

// One job to its end; `work` is RunJob or FinishJob.
template <typename Work>
absl::StatusOr<rollout::RunJobSummary> WithProgress(rollout::RunJobOptions job, Work work,
                                                    rollout_wire::Job* last) {
  Progress progress("rollout");
  job.on_progress = [&](const rollout_wire::Job& now) {
    *last = now;
    progress.Update(now.sealed(), now.trajectories(), Note(now));
  };
  return work(job);
}

absl::Status Interrupted(const Context& context, const RolloutRunOptions& options,
                         const rollout_wire::Job& job, bool ours) {
  std::string where = job.trajectories() == 0 ? ""
                                              : fmt::format(" after {} of {} trajectories",
                                                            job.sealed(), job.trajectories());
  std::string next = fmt::format("{} rollout resume {} --out {}", context.program,
                                 TargetFlags(options.target), ShellQuote(options.out_dir));
  return absl::CancelledError(fmt::format("interrupted{}, nothing is lost: {}go on with `{}`",
                                          where, ours ? "" : "the daemon goes on with the job; ",
                                          next));
}

int ExitCode(const rollout_wire::Job& job) {
  return job.state() == "completed" ? kExitDone : kExitFailed;
}

Json SummaryJson(const rollout::RunJobSummary& summary) {
  Json out = ToJson(summary.job);
  out["tokens_per_second"] = summary.tokens_per_second;
  out["output"] = summary.output_path;
  return out;
}

// What resume does with one job.
struct Task {
  std::string job_id;
  std::string out_dir;
  bool unfinished = false;
};

absl::StatusOr<std::vector<Task>> PlanResume(rollout::RolloutClient* client,
                                             const RolloutRunOptions& options) {
  ASSIGN_OR_RETURN(rollout_wire::ListJobsResponse jobs, client->List());
  if (!options.job_id.empty()) {
    RETURN_IF_ERROR(client->Get(options.job_id).status());
    return std::vector<Task>{{options.job_id, options.out_dir, true}};
  }
  std::vector<Task> tasks;
  for (const rollout_wire::Job& job : jobs.jobs()) {
    Task task{job.job_id(), options.out_dir, false};
    if (jobs.jobs_size() > 1) task.out_dir += "/" + job.job_id();
    task.unfinished =
        job.state() == "running" || job.state() == "paused" || job.state() == "failed";
    std::error_code ignored;
    bool missing = !std::filesystem::exists(task.out_dir + "/" + kOutputName, ignored);
    bool complete = job.state() == "completed";
    if (task.unfinished || (complete && (missing || jobs.jobs_size() == 1))) tasks.push_back(task);
  }
  return tasks;
}

}  // namespace

absl::StatusOr<int> RunRollout(const Context& context, RolloutRunOptions options) {
  RETURN_IF_ERROR(CheckTarget(options.target));
  std::error_code ignored;
  if (!std::filesystem::exists(options.job_file, ignored)) {
    return absl::NotFoundError(
        fmt::format("no job file {}: name an existing TOML file", options.job_file));
  }
  base::Stopwatch watch;
  Interrupt interrupt;
  ASSIGN_OR_RETURN(RolloutAccess access, OpenToRun(options.target));
  interrupt.Watch([&] { access.client->Shutdown(); });
  rollout::RunJobOptions job;
  job.job_file = options.job_file;
  job.job_id = options.job_id;
  job.out_dir = options.out_dir;
  job.without_timing = options.without_timing;
  rollout_wire::Job last;
  auto done = WithProgress(
      job, [&](const auto& one) { return rollout::RunJob(access.client.get(), one); }, &last);
  if (interrupt.interrupted())
    return Interrupted(context, options, last, access.embedded != nullptr);
  RETURN_IF_ERROR(done.status());
  if (context.json) {
    PrintJson(SummaryJson(*done));
  } else {
    PrintSummary(context, options.target, *done, watch.ElapsedMillis() / 1000);
  }
  return ExitCode(done->job);
}

absl::StatusOr<int> ResumeRollouts(const Context& context, RolloutRunOptions options) {
  std::error_code ignored;
  if (options.target.server.empty() && !options.target.state.empty() &&
      !std::filesystem::exists(options.target.state, ignored)) {
    return absl::NotFoundError(fmt::format(
        "no state directory {}: `reprise rollout run JOB.toml` makes one", options.target.state));
  }
  base::Stopwatch watch;
  Interrupt interrupt;
  ASSIGN_OR_RETURN(RolloutAccess access, OpenToRun(options.target));
  interrupt.Watch([&] { access.client->Shutdown(); });
  int exit_code = kExitDone;
  Json out = Json::array();
  absl::StatusOr<std::vector<Task>> tasks = PlanResume(access.client.get(), options);
  if (interrupt.interrupted()) tasks = std::vector<Task>();
  RETURN_IF_ERROR(tasks.status());
  rollout_wire::Job last;
  for (const Task& task : *tasks) {
    rollout::RunJobOptions job;
    job.job_id = task.job_id;
    job.out_dir = task.out_dir;
    job.without_timing = options.without_timing;
    watch.Restart();
    auto done = WithProgress(
        job, [&](const auto& one) { return rollout::FinishJob(access.client.get(), one); }, &last);
    if (interrupt.interrupted()) break;
    if (!done.ok()) {
      // The others go on. A complete job whose files have gone cannot be exported again; its state
      // is none the worse.
      fmt::print(stderr, "reprise: {}\n", done.status().message());
      if (task.unfinished) exit_code = kExitFailed;
      out.push_back({{"job_id", task.job_id}, {"error", Message(done.status())}});
      continue;
    }
    if (ExitCode(done->job) != kExitDone) exit_code = kExitFailed;
    if (context.json) {
      out.push_back(SummaryJson(*done));
    } else {
      PrintSummary(context, options.target, *done, watch.ElapsedMillis() / 1000);
    }
  }
  if (interrupt.interrupted())
    return Interrupted(context, options, last, access.embedded != nullptr);
  if (context.json) {
    PrintJson(out);
  } else if (tasks->empty()) {
    Print("nothing to do: every job there is complete and exported\n");
  }
  return exit_code;
}

}  // namespace reprise::cli
