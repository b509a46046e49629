// The parts that a job file and a task line share: limits, sandbox, reward.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rollout/fields.h"
#include "rollout/job.h"

namespace reprise::rollout {

// `path`, from `directory` unless it is absolute.
std::string FromDirectory(const std::string& directory, const std::string& path);

// Every field of Limits under its own name, laid over `base`.
absl::StatusOr<sandbox::Limits> ReadLimits(Fields& fields, sandbox::Limits base);

// A sandbox table, laid over `base`; host paths of binds start from `directory`.
absl::StatusOr<sandbox::SandboxSpec> ReadSandbox(Fields& fields, sandbox::SandboxSpec base,
                                                 const std::string& directory);

// Paths start from `directory`.
absl::StatusOr<RewardSpec> ReadReward(Fields& fields, const std::string& directory);

// The lines of a task set that the job uses. Errors name file and line.
absl::Status ReadTasks(std::string_view text, const std::string& file, const std::string& directory,
                       const sandbox::SandboxSpec& sandbox, const std::optional<RewardSpec>& reward,
                       JobSpec* job);

}  // namespace reprise::rollout
