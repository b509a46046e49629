// `reprise rollout`: run jobs, and look at, pause, resume and cancel those that a daemon or a state
// directory has.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "base/status_macros.h"
#include "clients/cli/commands.h"
#include "clients/cli/options.h"
#include "clients/cli/output.h"
#include "clients/cli/rollout_run.h"
#include "clients/cli/sockets.h"
#include "clients/cli/wire_json.h"
#include "engine/parallel/rank_options.h"

namespace reprise::cli {
namespace {

using Options = std::shared_ptr<RolloutRunOptions>;

std::string Reward(const rollout_wire::Job& job) {
  return job.rewarded() > 0 ? fmt::format("{:.4f}", job.mean_reward()) : "-";
}

absl::StatusOr<int> List(const Context& context, const RolloutTarget& target) {
  ASSIGN_OR_RETURN(RolloutAccess access, OpenToRead(target));
  ASSIGN_OR_RETURN(rollout_wire::ListJobsResponse jobs, access.client->List());
  if (context.json) {
    Json out = Json::array();
    for (const auto& job : jobs.jobs()) out.push_back(ToJson(job));
    PrintJson(out);
    return kExitDone;
  }
  Table table({"JOB", "STATE", "DONE", "OF", "TOKENS", "TOOL CALLS", "MEAN REWARD", "SUBMITTED"});
  for (const auto& job : jobs.jobs()) {
    table.Add({job.job_id(), job.state(), Count(job.sealed()), Count(job.trajectories()),
               Count(job.sampled_tokens()), Count(job.tool_calls()), Reward(job),
               LocalTime(job.submitted_us())});
  }
  Print(table.empty() ? "no jobs yet: `reprise rollout run JOB.toml` submits one\n"
                      : table.Render());
  return kExitDone;
}

int PrintJob(const Context& context, const rollout_wire::Job& job) {
  if (context.json) {
    PrintJson(ToJson(job));
    return kExitDone;
  }
  Facts facts;
  facts.Add("state", job.state());
  if (!job.message().empty()) facts.Add("why", job.message());
  std::string trajectories =
      fmt::format("{} of {} done", Count(job.sealed()), Count(job.trajectories()));
  if (job.failed() > 0) trajectories += fmt::format(", {} without a result", Count(job.failed()));
  facts.Add("trajectories", trajectories);
  facts.Add("tokens", fmt::format("{} sampled, {} fed", Count(job.sampled_tokens()),
                                  Count(job.fed_tokens())));
  facts.Add("tool calls", Count(job.tool_calls()));
  facts.Add("mean reward", job.rewarded() > 0 ? fmt::format("{:.4f} over {}", job.mean_reward(),
                                                            Count(job.rewarded()))
                                              : "none yet");
  facts.Add("submitted", LocalTime(job.submitted_us()));
  if (job.completed_us() > 0) facts.Add("ended", LocalTime(job.completed_us()));
  Print(fmt::format("job {}\n{}", job.job_id(), facts.Render()));
  return kExitDone;
}

using Verb = absl::StatusOr<rollout_wire::Job> (rollout::RolloutClient::*)(const std::string&);

absl::StatusOr<int> ShowAfter(const Context& context, const RolloutRunOptions& options, Verb verb) {
  ASSIGN_OR_RETURN(RolloutAccess access, OpenToRead(options.target));
  ASSIGN_OR_RETURN(rollout_wire::Job job, (access.client.get()->*verb)(options.job_id));
  return PrintJob(context, job);
}

absl::StatusOr<int> Resume(const Context& context, const RolloutRunOptions& options) {
  if (!options.out_dir.empty()) return ResumeRollouts(context, options);
  // Without an export it is a word to a daemon that runs.
  bool running =
      !options.target.server.empty() ||
      (!options.target.state.empty() && Answers(SocketOf(options.target.state, "rolloutd.sock")));
  if (options.job_id.empty() || !running) {
    return UsageError(
        "rollout resume needs --out DIR to finish jobs here, or JOB and a running daemon");
  }
  return ShowAfter(context, options, &rollout::RolloutClient::Resume);
}

void AddTarget(CLI::App& app, RolloutTarget& target) {
  AddState(app, target.state, "state directory; a daemon that serves it is used");
  app.add_option("--server", target.server, "address of a running rolloutd, e.g. unix:/PATH")
      ->type_name("ADDR");
}

void AddRunOptions(CLI::App& app, RolloutRunOptions& options) {
  app.add_option("--out", options.out_dir, "directory for trajectories.jsonl, made when missing")
      ->type_name("DIR");
  app.add_option("--threads", options.target.threads, "engine threads, 0 = one a core")
      ->check(CLI::Range(0, 4096))
      ->type_name("N");
  engine::AddRankOptions(app, options.target.parallel);
  app.add_option("--bind-root", options.target.bind_roots,
                 "host directory below which sandboxes may bind; repeatable")
      ->type_name("DIR");
  app.add_flag("--without-timing", options.without_timing,
               "leave out the fields that differ between two runs");
}

void AddVerb(CLI::App& group, Context& context, const std::string& name,
             const std::string& description, Verb verb) {
  auto options = std::make_shared<RolloutRunOptions>();
  CLI::App* leaf = AddLeaf(group, name, description, context, [&context, options, verb] {
    return ShowAfter(context, *options, verb);
  });
  leaf->add_option("JOB", options->job_id, "job id, as `rollout ls` shows it")->required();
  AddTarget(*leaf, options->target);
}

}  // namespace

void AddRolloutCommands(CLI::App& app, Context& context) {
  CLI::App* group = AddGroup(app, "rollout", "run rollout jobs, and look at them");

  auto run = std::make_shared<RolloutRunOptions>();
  CLI::App* leaf = AddLeaf(*group, "run", "run a job to its end; the same command again goes on",
                           context, [&context, run] { return RunRollout(context, *run); });
  leaf->add_option("JOB.toml", run->job_file, "job file (docs/jobs.md)")->required();
  AddTarget(*leaf, run->target);
  AddRunOptions(*leaf, *run);
  leaf->get_option("--out")->required();
  leaf->add_option("--job-id", run->job_id, "another id than the file's")->type_name("ID");

  auto resume = std::make_shared<RolloutRunOptions>();
  leaf = AddLeaf(*group, "resume",
                 "with --out: finish every unfinished job and export it (to DIR, or to DIR/<job> "
                 "when there are several); without: let a paused job of a daemon go on",
                 context, [&context, resume] { return Resume(context, *resume); });
  leaf->add_option("JOB", resume->job_id, "this job alone");
  AddTarget(*leaf, resume->target);
  AddRunOptions(*leaf, *resume);

  AddVerb(*group, context, "pause", "stop a job at a token boundary",
          &rollout::RolloutClient::Pause);
  AddVerb(*group, context, "cancel", "end a job; its unfinished trajectories are given up",
          &rollout::RolloutClient::Cancel);
  AddVerb(*group, context, "show", "show one job", &rollout::RolloutClient::Get);

  auto list = std::make_shared<RolloutTarget>();
  leaf = AddLeaf(*group, "ls", "list jobs", context,
                 [&context, list] { return List(context, *list); });
  AddTarget(*leaf, *list);
}

}  // namespace reprise::cli
