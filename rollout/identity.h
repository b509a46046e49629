// Names and seeds that follow from a job alone, so that a restarted daemon asks for the same things
// under the same names: trajectory, sandbox and call ids, sampler seeds, and the digest that ties a
// log to an engine.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace reprise::rollout {

// Longest job id: ids derived from it stay within base::kMaxIdBytes.
inline constexpr size_t kMaxJobIdBytes = 128;
inline constexpr uint32_t kMaxGroups = 1'000'000;  // six digits

// Changes with every change of the chat format that could change a token.
inline constexpr std::string_view kTemplateVersion = "deepseek-v4-2026-04";

// <job>/<group, six digits>/<sample>: ids of a job sort by group, and by sample up to ten of them.
std::string TrajectoryId(std::string_view job_id, uint32_t group, uint32_t sample);
// The log of a fresh attempt at a sample: <trajectory>.r<attempt>; attempt 0 is the trajectory's own.
std::string AttemptId(std::string_view trajectory_id, uint32_t attempt);
// The attempt that an id of AttemptId names.
uint32_t AttemptOf(std::string_view trajectory_id);
// <trajectory>.<branch>: the log of a branch of an external trajectory; branch 0 is the trajectory's.
std::string BranchId(std::string_view trajectory_id, uint32_t branch);
// <trajectory>.f<number>: one that branched from a log of this sample.
std::string ForkId(std::string_view trajectory_id, uint32_t number);
// The number that an id of ForkId names; 0 for any other.
uint32_t ForkNumberOf(std::string_view trajectory_id);
// The trajectory of an id of CallId.
std::string TrajectoryOfCall(std::string_view call_id);
// One sandbox a trajectory, under its own id.
std::string SandboxId(std::string_view trajectory_id);
// <trajectory>.judge: the sandbox that a reward command has for itself.
std::string JudgeSandboxId(std::string_view trajectory_id);
// <trajectory>/<turn>/<index>
std::string CallId(std::string_view trajectory_id, uint32_t turn, uint32_t index);
// <trajectory>/reward/0
std::string RewardCallId(std::string_view trajectory_id);

// The first 8 bytes, little-endian, of SHA-256("reprise.seed.v1\n" job_seed "\n" sample "\n"
// task_id), numbers in decimal: independent of the job's id and of what else is in it.
// A fresh attempt: "reprise.seed.v1.attempt\n" attempt "\n" job_seed "\n" ... instead.
uint64_t TrajectorySeed(uint64_t job_seed, std::string_view task_id, uint32_t sample,
                        uint32_t attempt = 0);

// Of a fork: "reprise.seed.v1.fork\n" number "\n" job_seed "\n" ... instead.
uint64_t ForkSeed(uint64_t job_seed, std::string_view task_id, uint32_t sample, uint32_t number);

// SHA-256 (raw) over the engine's digest and the version of the chat template.
std::string LogEngineDigest(std::string_view engine_digest);

}  // namespace reprise::rollout
