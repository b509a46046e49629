// The order in which experts see their rows, on the device: the (token, choice) slots sorted by
// expert, cut into tiles of one expert each, and the experts' outputs added up per token. Nothing
// of it goes through the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/matmul.h"
#include "kernels/host_device.h"

namespace reprise::kernels::cuda {

// Tiles of `rows` rows of one expert.
REPRISE_BOTH constexpr int32_t TilesOf(int32_t rows) {
  return (rows + kExpertTileRows - 1) / kExpertTileRows;
}

// The most tiles that `slots` slots can need, however `experts` experts divide them: every expert
// that has a slot may have one tile that is not full.
REPRISE_BOTH constexpr int64_t TilesMax(int64_t slots, int64_t experts) {
  return (slots < experts ? slots : experts) + slots / kExpertTileRows;
}

// Slot s is choice s % k of token s / k. Pointers are of the device.
struct PlanExpertsParams {
  const uint16_t* chosen = nullptr;  // [tokens, k], each below `experts`
  int32_t* slot_at = nullptr;        // [tokens * k]: slots by expert, those of one expert ascending
  int32_t* token_at = nullptr;       // [tokens * k]: their tokens
  int32_t* place_of = nullptr;       // [tokens * k]: where each slot stands in slot_at
  ExpertTile* tiles = nullptr;  // [TilesMax(tokens * k, experts)], by expert; the rest has no rows
  int64_t tokens = 0;
  int experts = 0, k = 0;
};

struct CombineParams {
  const float* routed = nullptr;      // [places, n]: the experts' outputs
  const int32_t* place_of = nullptr;  // [tokens * k]
  float* out = nullptr;               // [tokens, n]: the shared expert's output, then the sum
  int64_t tokens = 0, n = 0;
  int k = 0;
};

// out[i] = weights[slot_at[i]]: routing weights in the order of places.
struct GatherWeightsParams {
  const float* weights = nullptr;    // [slots]
  const int32_t* slot_at = nullptr;  // [slots]
  float* out = nullptr;              // [slots]
  int64_t slots = 0;
};

// Each queues its work on `stream`. INVALID_ARGUMENT for more experts than kMaxExperts (router.h)
// or 2^31 slots; other errors are of the launch. Nothing happens for no tokens.
absl::Status PlanExperts(const PlanExpertsParams& params, cudaStream_t stream);
absl::Status GatherWeights(const GatherWeightsParams& params, cudaStream_t stream);
// out = bf16((bf16(routed of choice 0) + bf16(choice 1) + ...) + bf16(out)), in the order of the
// choice.
absl::Status CombineExperts(const CombineParams& params, cudaStream_t stream);

}  // namespace reprise::kernels::cuda
