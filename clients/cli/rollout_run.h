// `reprise rollout run` and `rollout resume --out`: jobs from where they stand to their export,
// with progress, a clean end on Ctrl-C and a summary that says what to type next.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "clients/cli/context.h"
#include "clients/cli/daemons.h"

namespace reprise::cli {

struct RolloutRunOptions {
  RolloutTarget target;
  std::string job_file;  // run
  std::string job_id;    // run: another id than the file's; resume: this job alone when not empty
  std::string out_dir;
  bool without_timing = false;
};

absl::StatusOr<int> RunRollout(const Context& context, RolloutRunOptions options);
// Finishes every unfinished job of the state directory (or the one named) and exports it, and each
// complete job whose export is missing. OUT/trajectories.jsonl where the daemon has one job or one
// was named, else OUT/<job>/trajectories.jsonl.
absl::StatusOr<int> ResumeRollouts(const Context& context, RolloutRunOptions options);

}  // namespace reprise::cli
