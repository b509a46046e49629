// Attention of one token's query heads over shared key-value rows, with a sink logit for each head.
#pragma once

#include <cstdint>

namespace reprise::kernels::cpu {

// out[h] = sum_j e^{l_hj} row_j / (sum_j e^{l_hj} + e^{sinks[h]}), l_hj = scale * (q[h] . row_j).
// q and out are [heads, dim]; `rows` are `count` >= 1 vectors of [dim] that are both keys and values, summed in the
// given order. `scratch` has heads * (count + 1) elements. With `to_bf16` the probabilities relative to the largest are rounded
// to bfloat16 for the weighted sum, which is divided at the end; the denominator stays float32.
void Attend(const float* q, int64_t heads, int64_t dim, const float* const* rows, int64_t count, const float* sinks,
            float scale, float* scratch, float* out, bool to_bf16);

}  // namespace reprise::kernels::cpu
