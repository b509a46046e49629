// Which division of a model among devices fits their memory, from the exact bytes of its tensors
// and of its KV states. Routed experts are divided among all devices; attention is divided among
// the ranks of a group (docs/ranks.md), and groups have sequences of their own.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/config.h"
#include "engine/model_info.h"

namespace reprise::engine {

struct PlanRequest {
  int64_t devices = 1;
  int64_t device_bytes = 0;
  int64_t reserved_bytes = 0;  // of each device, for activations and what its runtime needs
  int64_t context = 0;         // tokens of a sequence
};

struct Placement {
  int64_t group_ranks = 0;   // devices of a group; divides `devices`
  int64_t groups = 0;        // devices / group_ranks
  int64_t weight_bytes = 0;  // of the fullest device
  int64_t kv_bytes = 0;      // left on it for KV states; negative: it lacks so much
  int64_t sequences = 0;     // of `context` tokens, all groups together
};

struct ModelPlan {
  // Bytes of tensors as stored, MTP blocks left out: of routed experts, of what a group divides, of
  // what every device has.
  int64_t expert_bytes = 0, divided_bytes = 0, common_bytes = 0;
  int64_t sequence_bytes = 0;         // of the KV state of `context` tokens
  std::vector<Placement> placements;  // every possible one, that for the most sequences first
};

// Errors: as ReadModelInfo; INVALID_ARGUMENT for a context that the model does not have, or sizes
// below 1; FAILED_PRECONDITION when the checkpoint is not usable.
absl::StatusOr<ModelPlan> PlanModel(const std::string& directory, const PlanRequest& request);

}  // namespace reprise::engine
