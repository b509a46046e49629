#include "rollout/identity.h"

#include <fmt/format.h>

#include "absl/strings/numbers.h"
#include "rollout/text.h"

namespace reprise::rollout {
std::string TrajectoryId(std::string_view job_id, uint32_t group, uint32_t sample) {
  return fmt::format("{}/{:06d}/{}", job_id, group, sample);
}

std::string AttemptId(std::string_view trajectory_id, uint32_t attempt) {
  return attempt == 0 ? std::string(trajectory_id)
                      : fmt::format("{}.r{}", trajectory_id, attempt);
}

namespace {

// The number behind the last `mark` of an id's last part; 0 when there is none.
uint32_t NumberBehind(std::string_view id, std::string_view mark) {
  const size_t at = id.rfind(mark);
  const size_t sample = id.rfind('/');
  uint32_t number = 0;
  if (at == id.npos || sample == id.npos || at < sample) return 0;
  return absl::SimpleAtoi(std::string(id.substr(at + mark.size())), &number) ? number : 0;
}

uint64_t SeedOf(std::string_view kind, uint64_t job_seed, std::string_view task_id,
                uint32_t sample) {
  const std::string digest = Sha256(fmt::format("{}\n{}\n{}\n{}", kind, job_seed, sample, task_id));
  uint64_t seed = 0;
  for (int i = 7; i >= 0; --i) seed = seed << 8 | static_cast<unsigned char>(digest[i]);
  return seed;
}

}  // namespace

uint32_t AttemptOf(std::string_view trajectory_id) { return NumberBehind(trajectory_id, ".r"); }

std::string ForkId(std::string_view trajectory_id, uint32_t number) {
  return fmt::format("{}.f{}", trajectory_id, number);
}

uint32_t ForkNumberOf(std::string_view trajectory_id) { return NumberBehind(trajectory_id, ".f"); }

std::string TrajectoryOfCall(std::string_view call_id) {
  for (int part = 0; part < 2; ++part) call_id = call_id.substr(0, call_id.rfind('/'));
  return std::string(call_id);
}

std::string SandboxId(std::string_view trajectory_id) { return std::string(trajectory_id); }

std::string JudgeSandboxId(std::string_view trajectory_id) {
  return fmt::format("{}.judge", trajectory_id);
}

std::string BranchId(std::string_view trajectory_id, uint32_t branch) {
  return branch == 0 ? std::string(trajectory_id) : fmt::format("{}.{}", trajectory_id, branch);
}

std::string CallId(std::string_view trajectory_id, uint32_t turn, uint32_t index) {
  return fmt::format("{}/{}/{}", trajectory_id, turn, index);
}

std::string RewardCallId(std::string_view trajectory_id) {
  return fmt::format("{}/reward/0", trajectory_id);
}

uint64_t TrajectorySeed(uint64_t job_seed, std::string_view task_id, uint32_t sample,
                        uint32_t attempt) {
  return SeedOf(
      attempt == 0 ? "reprise.seed.v1" : fmt::format("reprise.seed.v1.attempt\n{}", attempt),
      job_seed, task_id, sample);
}

uint64_t ForkSeed(uint64_t job_seed, std::string_view task_id, uint32_t sample, uint32_t number) {
  return SeedOf(fmt::format("reprise.seed.v1.fork\n{}", number), job_seed, task_id, sample);
}

std::string LogEngineDigest(std::string_view engine_digest) {
  return Sha256(fmt::format("reprise.engine.v1\n{}\n{}", engine_digest, kTemplateVersion));
}

}  // namespace reprise::rollout
