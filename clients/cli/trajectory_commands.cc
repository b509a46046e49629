// `reprise trajectory`: what the journal has of each trajectory, whether or not a daemon runs.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "base/fd.h"
#include "base/status_macros.h"
#include "clients/cli/commands.h"
#include "clients/cli/daemons.h"
#include "clients/cli/options.h"
#include "clients/cli/output.h"
#include "clients/cli/wire_json.h"
#include "rollout/run_job.h"

namespace reprise::cli {
namespace {

struct Options {
  RolloutTarget target;
  std::string job_id, trajectory_id, other_id, out;
  bool without_timing = false;
  uint32_t at_step = 0;
  std::optional<uint64_t> seed;
};

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  if (lines.back().empty()) lines.pop_back();
  return lines;
}

// From the first line that differs to the last: "- " what `left` has, "+ " what `right` has. ""
// when they are the same.
std::string LineDiff(const std::string& left, const std::string& right) {
  if (left == right) return "";
  const std::vector<std::string> a = Lines(left), b = Lines(right);
  size_t begin = 0, end = 0;
  const size_t shorter = std::min(a.size(), b.size());
  while (begin < shorter && a[begin] == b[begin]) ++begin;
  while (end < shorter - begin && a[a.size() - 1 - end] == b[b.size() - 1 - end]) ++end;
  std::string diff = fmt::format("first difference in line {}\n", begin + 1);
  for (size_t i = begin; i < a.size() - end; ++i) diff += "- " + a[i] + "\n";
  for (size_t i = begin; i < b.size() - end; ++i) diff += "+ " + b[i] + "\n";
  return diff;
}

std::string Reward(const rollout_wire::Trajectory& trajectory) {
  return trajectory.has_reward() ? fmt::format("{:.4f}", trajectory.reward()) : "-";
}

absl::StatusOr<int> List(const Context& context, const Options& options) {
  ASSIGN_OR_RETURN(RolloutAccess access, OpenToRead(options.target));
  ASSIGN_OR_RETURN(rollout_wire::ListTrajectoriesResponse list,
                   access.client->ListTrajectories(options.job_id));
  if (context.json) {
    Json out = Json::array();
    for (const auto& one : list.trajectories()) out.push_back(ToJson(one));
    PrintJson(out);
    return kExitDone;
  }
  Table table(
      {"TRAJECTORY", "TASK", "STATUS", "STOPPED BY", "TOKENS", "SAMPLED", "CALLS", "REWARD"});
  for (const auto& one : list.trajectories()) {
    table.Add({one.trajectory_id(), one.task_id(), one.status(), one.stop_reason(),
               Count(one.tokens()), Count(one.sampled()), Count(one.calls()), Reward(one)});
  }
  Print(table.empty() ? "no trajectories yet\n" : table.Render());
  return kExitDone;
}

absl::StatusOr<int> Show(const Context& context, const Options& options) {
  ASSIGN_OR_RETURN(RolloutAccess access, OpenToRead(options.target));
  ASSIGN_OR_RETURN(rollout_wire::Trajectory one,
                   access.client->GetTrajectory(options.trajectory_id));
  if (context.json) {
    Json out = ToJson(one);
    out["log"] = std::vector<std::string>(one.log().begin(), one.log().end());
    out["record"] = one.record_json().empty() ? Json() : Json::parse(one.record_json());
    PrintJson(out);
    return kExitDone;
  }
  Facts facts;
  facts.Add("task", one.task_id());
  if (!one.parent_id().empty())
    facts.Add("branched from", fmt::format("{} at step {}", one.parent_id(), one.at_step()));
  facts.Add("status", one.stop_reason().empty()
                          ? one.status()
                          : fmt::format("{} ({})", one.status(), one.stop_reason()));
  facts.Add("tokens",
            fmt::format("{}, {} of them sampled", Count(one.tokens()), Count(one.sampled())));
  facts.Add("tool calls", Count(one.calls()));
  facts.Add("reward", Reward(one));
  std::string text = fmt::format("trajectory {}\n{}\n", one.trajectory_id(), facts.Render());
  for (const std::string& line : one.log()) text += line + "\n";
  Print(text);
  return kExitDone;
}

absl::StatusOr<int> Verify(const Context& context, const Options& options) {
  ASSIGN_OR_RETURN(RolloutAccess access, OpenToRun(options.target));
  ASSIGN_OR_RETURN(rollout_wire::Verification done,
                   access.client->VerifyTrajectory(options.trajectory_id));
  if (context.json) {
    PrintJson({{"trajectory_id", done.trajectory_id()},
               {"verified", done.verified()},
               {"not_run", done.not_run()},
               {"diverged", done.diverged()},
               {"call_id", done.call_id()},
               {"field", done.field()},
               {"stored", done.stored()},
               {"found", done.found()}});
  } else {
    Print(fmt::format("{} of {}: {} calls gave their stored result again, {} never ran\n",
                      done.diverged() ? "DIVERGED" : "verified", done.trajectory_id(),
                      Count(done.verified()), Count(done.not_run())));
    if (done.diverged()) {
      Print(fmt::format("call {} differs in {}\n{}", done.call_id(), done.field(),
                        LineDiff(done.stored(), done.found())));
    }
  }
  return done.diverged() ? kExitFailed : kExitDone;
}

absl::StatusOr<int> Diff(const Context& context, const Options& options) {
  ASSIGN_OR_RETURN(RolloutAccess access, OpenToRead(options.target));
  std::string logs[2];
  std::vector<std::string> ids = {options.trajectory_id, options.other_id};
  std::sort(ids.begin(), ids.end(),
            [](const std::string& a, const std::string& b) { return a.size() > b.size(); });
  for (int i = 0; i < 2; ++i) {
    const std::string& id = i == 0 ? options.trajectory_id : options.other_id;
    ASSIGN_OR_RETURN(rollout_wire::Trajectory one, access.client->GetTrajectory(id));
    for (std::string line : one.log()) {
      // Ids differ in every line that has one, and a fork's holds its parent's: the longer first.
      for (const std::string& each : ids) {
        for (size_t at; (at = line.find(each)) != std::string::npos;)
          line.replace(at, each.size(), "*");
      }
      logs[i] += line + "\n";
    }
  }
  const std::string diff = LineDiff(logs[0], logs[1]);
  if (context.json) {
    PrintJson({{"same", diff.empty()}, {"diff", diff}});
  } else {
    Print(diff.empty() ? "their logs are the same\n" : diff);
  }
  return diff.empty() ? kExitDone : kExitFailed;
}

absl::StatusOr<int> Fork(const Context& context, const Options& options) {
  ASSIGN_OR_RETURN(RolloutAccess access, OpenToRun(options.target));
  rollout_wire::ForkTrajectoryRequest request;
  request.set_trajectory_id(options.trajectory_id);
  request.set_at_step(options.at_step);
  if (options.seed.has_value()) request.set_seed(*options.seed);
  ASSIGN_OR_RETURN(const rollout_wire::ForkedTrajectory made,
                   access.client->ForkTrajectory(request));
  if (context.json) {
    PrintJson({{"trajectory_id", made.trajectory_id()},
               {"shared_tokens", made.shared_tokens()},
               {"shared_calls", made.shared_calls()}});
    return kExitDone;
  }
  Print(fmt::format("{} branches from {} at step {}: {} tokens and {} calls are shared\n",
                    made.trajectory_id(), options.trajectory_id, options.at_step,
                    Count(made.shared_tokens()), Count(made.shared_calls())));
  if (access.embedded != nullptr) {
    Print("no daemon runs here: `reprise rollout resume` goes on with it\n");
  }
  return kExitDone;
}

absl::StatusOr<int> Export(const Context& context, const Options& options) {
  ASSIGN_OR_RETURN(RolloutAccess access, OpenToRead(options.target));
  rollout_wire::ExportRequest request;
  request.set_job_id(options.job_id);
  request.set_without_timing(options.without_timing);
  ASSIGN_OR_RETURN(rollout_wire::Job job, access.client->Get(options.job_id));
  if (options.out == "-") {
    RETURN_IF_ERROR(access.client->Export(request, [](const auto& record) {
      return base::WriteAll(STDOUT_FILENO, record.json() + "\n", "cannot write to stdout");
    }));
    return kExitDone;
  }
  RETURN_IF_ERROR(rollout::ExportJob(access.client.get(), request, options.out));
  if (context.json) {
    PrintJson({{"job_id", job.job_id()}, {"sealed", job.sealed()}, {"output", options.out}});
  } else {
    Print(fmt::format("{} of {} trajectories of job {} written to {}\n", Count(job.sealed()),
                      Count(job.trajectories()), job.job_id(), options.out));
  }
  return kExitDone;
}

CLI::App* Add(CLI::App& group, Context& context, const std::string& name,
              const std::string& description, const std::shared_ptr<Options>& options,
              absl::StatusOr<int> (*action)(const Context&, const Options&)) {
  CLI::App* leaf = AddLeaf(group, name, description, context,
                           [&context, options, action] { return action(context, *options); });
  AddState(*leaf, options->target.state, "state directory; a daemon that serves it is used");
  leaf->add_option("--server", options->target.server,
                   "address of a running rolloutd, e.g. unix:/PATH")
      ->type_name("ADDR");
  return leaf;
}

}  // namespace

void AddTrajectoryCommands(CLI::App& app, Context& context) {
  CLI::App* group = AddGroup(app, "trajectory", "look at trajectories, and export them");

  auto list = std::make_shared<Options>();
  CLI::App* leaf = Add(*group, context, "ls", "list trajectories", list, List);
  leaf->add_option("--job", list->job_id, "of this job alone")->type_name("JOB");

  auto show = std::make_shared<Options>();
  leaf = Add(*group, context, "show", "show one trajectory, entry by entry", show, Show);
  leaf->add_option("ID", show->trajectory_id, "trajectory id, as `trajectory ls` shows it")
      ->required();

  auto verify = std::make_shared<Options>();
  leaf = Add(*group, context, "verify",
             "run its stored calls again in a fresh sandbox; fails at the first other result",
             verify, Verify);
  leaf->add_option("ID", verify->trajectory_id, "trajectory id")->required();

  auto diff = std::make_shared<Options>();
  leaf = Add(*group, context, "diff", "show where the logs of two trajectories part", diff, Diff);
  leaf->add_option("A", diff->trajectory_id, "trajectory id")->required();
  leaf->add_option("B", diff->other_id, "trajectory id")->required();

  auto fork = std::make_shared<Options>();
  leaf = Add(*group, context, "fork",
             "begin a trajectory that shares the log of another up to a step, in a sandbox as it "
             "was then",
             fork, Fork);
  leaf->add_option("ID", fork->trajectory_id, "trajectory id")->required();
  leaf->add_option(
          "--at-step", fork->at_step,
          "assistant turns that both have, with the results of their calls; 0 = the prompt")
      ->required()
      ->type_name("K");
  leaf->add_option("--seed", fork->seed, "of its sampler; default: one that follows from the job's")
      ->type_name("N");

  auto save = std::make_shared<Options>();
  leaf = Add(*group, context, "export", "write the finished trajectories of a job", save, Export);
  leaf->add_option("--job", save->job_id, "which job")->required()->type_name("JOB");
  leaf->add_option("--out", save->out, "file for one rollout.v1 record a line; - = stdout")
      ->required()
      ->type_name("FILE");
  leaf->add_flag("--without-timing", save->without_timing,
                 "leave out the fields that differ between two runs");
}

}  // namespace reprise::cli
