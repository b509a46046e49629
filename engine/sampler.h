// From logits to one token: penalties, temperature, cuts, and a draw that depends on seed and
// position alone.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/engine.h"

namespace reprise::engine {

inline constexpr float kTemperatureMax = 100;
inline constexpr float kPenaltyMax = 100;
inline constexpr float kLogitBiasMax = 1000;
inline constexpr int32_t kTopLogprobsMax = 1024;
inline constexpr int32_t kKeptMax = 65536;

// INVALID_ARGUMENT names the parameter that is out of its range (engine.h).
absl::Status CheckSampling(const SamplingParams& params, int64_t vocab_size);

// `history` are the tokens before the one that is sampled; its index in the sequence is their
// number. Equal logits: the lower id is greedy's choice, and comes first in every cut. The nucleus
// is the shortest prefix, by falling probability, that reaches top_p. DATA_LOSS when a logit is not
// finite; INTERNAL as AnswerConstraint::Allowed.
absl::StatusOr<SampledToken> Sample(absl::Span<const float> logits, const SamplingParams& params,
                                    absl::Span<const int32_t> history);

}  // namespace reprise::engine
