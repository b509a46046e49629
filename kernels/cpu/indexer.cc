// Indexer scores in tiles of keys, and deterministic selection.
#include "kernels/cpu/indexer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cpu/dot.h"
#include "kernels/formats.h"

namespace reprise::kernels::cpu {

void IndexScores(const float* q, const float* weights, int64_t heads, int64_t dim, const float* keys, int64_t blocks,
                 float* scratch, float* scores, bool to_bf16) {
  const float* rows[kIndexTile];
  for (int64_t begin = 0; begin < blocks; begin += kIndexTile) {
    const int64_t n = std::min(kIndexTile, blocks - begin);
    for (int64_t i = 0; i < n; ++i) rows[i] = keys + (begin + i) * dim;
    DotRows(q, dim, heads, rows, n, dim, scratch, kIndexTile);
    for (int64_t i = 0; i < n; ++i) scores[begin + i] = 0;
    for (int64_t h = 0; h < heads; ++h) {
      const float* dots = scratch + h * kIndexTile;
      if (to_bf16) {
        for (int64_t i = 0; i < n; ++i)
          scores[begin + i] += RoundBf16(weights[h] * std::max(0.0f, RoundBf16(dots[i])));
      } else {
        for (int64_t i = 0; i < n; ++i) scores[begin + i] += weights[h] * std::max(0.0f, dots[i]);
      }
    }
    if (to_bf16) {
      for (int64_t i = 0; i < n; ++i) scores[begin + i] = RoundBf16(scores[begin + i]);
    }
  }
}

void SelectTopK(const float* scores, int64_t blocks, int64_t k, std::vector<int32_t>* selected) {
  selected->resize(static_cast<size_t>(blocks));
  std::iota(selected->begin(), selected->end(), 0);
  if (blocks <= k) return;
  const auto key = [scores](int32_t i) {
    return std::isnan(scores[i]) ? -std::numeric_limits<float>::infinity() : scores[i];
  };
  std::nth_element(selected->begin(), selected->begin() + k, selected->end(), [&key](int32_t a, int32_t b) {
    const float score_a = key(a);
    const float score_b = key(b);
    return score_a != score_b ? score_a > score_b : a < b;
  });
  selected->resize(static_cast<size_t>(k));
  std::sort(selected->begin(), selected->end());
}

}  // namespace reprise::kernels::cpu
