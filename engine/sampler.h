// From logits to one token: temperature, top-p, a draw that depends on seed and position alone.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/engine.h"

namespace reprise::engine {

inline constexpr float kTemperatureMax = 100;

// INVALID_ARGUMENT names the parameter that is out of its range (engine.h).
absl::Status CheckSampling(const SamplingParams& params);

struct SampledToken {
  int32_t id = -1;
  float logprob = 0;      // under the sampling distribution; 0 when greedy
  float raw_logprob = 0;  // ln softmax(logits)
};

// `position` is the index that the token will have in its sequence. Equal logits: the lower id is
// greedy's choice, and comes first in the nucleus. The nucleus is the shortest prefix, by falling
// probability, that reaches top_p. DATA_LOSS when a logit is not finite.
absl::StatusOr<SampledToken> Sample(absl::Span<const float> logits, const SamplingParams& params,
                                    int64_t position);

}  // namespace reprise::engine
