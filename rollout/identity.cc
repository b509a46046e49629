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

uint32_t AttemptOf(std::string_view trajectory_id) {
  const size_t mark = trajectory_id.rfind(".r");
  const size_t sample = trajectory_id.rfind('/');
  uint32_t attempt = 0;
  if (mark == trajectory_id.npos || sample == trajectory_id.npos || mark < sample) return 0;
  return absl::SimpleAtoi(std::string(trajectory_id.substr(mark + 2)), &attempt) ? attempt : 0;
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
  const std::string kind =
      attempt == 0 ? "reprise.seed.v1" : fmt::format("reprise.seed.v1.attempt\n{}", attempt);
  std::string digest = Sha256(fmt::format("{}\n{}\n{}\n{}", kind, job_seed, sample, task_id));
  uint64_t seed = 0;
  for (int i = 7; i >= 0; --i) seed = seed << 8 | static_cast<unsigned char>(digest[i]);
  return seed;
}

std::string LogEngineDigest(std::string_view engine_digest) {
  return Sha256(fmt::format("reprise.engine.v1\n{}\n{}", engine_digest, kTemplateVersion));
}

}  // namespace reprise::rollout
