// Mixture-of-experts routing on the device: scores sqrt(softplus(z)), the choice by score + bias,
// the weights.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"

namespace reprise::kernels::cuda {

inline constexpr int kMaxExperts = 1024;
inline constexpr int kMaxChosen = 32;

// Pointers are of the device.
struct RouteParams {
  const float* logits = nullptr;  // [tokens, experts]
  const float* bias = nullptr;    // [experts]; nullptr when `table` chooses
  const int64_t* table =
      nullptr;  // [vocabulary, k]: the experts of each token id; nullptr when the scores choose
  const int32_t* ids = nullptr;  // [tokens]: token ids, with `table`
  uint16_t* chosen = nullptr;  // [tokens, k]; by score: best first, equal sums to the lower expert
  float* weights =
      nullptr;  // [tokens, k]: scale * score, divided by the sum of the chosen when `normalise`
  int64_t tokens = 0;
  int experts = 0, k = 0;
  float scale = 1.0f;
  bool normalise = true;
};

// Queues it on `stream`; errors are of the launch, INVALID_ARGUMENT for more than kMaxExperts or
// kMaxChosen. Nothing happens for no tokens.
absl::Status Route(const RouteParams& params, cudaStream_t stream);

}  // namespace reprise::kernels::cuda
