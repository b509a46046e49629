// Lightning indexer: scores of the visible blocks for one query token, and the choice of the best.
#pragma once

#include <cstdint>
#include <vector>

namespace reprise::kernels::cpu {

// scores[w] = sum_h weights[h] * max(0, q[h] . keys[w]), q is [heads, dim], keys is [blocks, dim].
// `weights` holds the scaling factors already. `scratch` has heads * kIndexTile elements. With `to_bf16` every dot product,
// every term and the sum are rounded to bfloat16, as the model was trained with.
inline constexpr int64_t kIndexTile = 64;
void IndexScores(const float* q, const float* weights, int64_t heads, int64_t dim, const float* keys, int64_t blocks,
                 float* scratch, float* scores, bool to_bf16);

// The `k` blocks of highest score, in ascending block order; equal scores go to the lower block, and a score that is
// not a number counts as the lowest. All blocks when blocks <= k.
void SelectTopK(const float* scores, int64_t blocks, int64_t k, std::vector<int32_t>* selected);

}  // namespace reprise::kernels::cpu
