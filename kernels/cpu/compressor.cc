// Block pooling; loops run over channels inside, so that they vectorise and keep one order over the rows.
#include "kernels/cpu/compressor.h"

#include <algorithm>
#include <cmath>

namespace reprise::kernels::cpu {

void PoolBlock(const PoolRow* rows, int64_t count, int64_t dim, float* scratch, float* out) {
  constexpr int64_t kChannels = 64;
  for (int64_t begin = 0; begin < dim; begin += kChannels) {
    const int64_t n = std::min(kChannels, dim - begin);
    float max[kChannels];
    float sum[kChannels] = {};
    float pooled[kChannels] = {};
    std::copy_n(rows[0].gate + begin, n, max);
    for (int64_t i = 1; i < count; ++i) {
      for (int64_t c = 0; c < n; ++c) max[c] = std::max(max[c], rows[i].gate[begin + c]);
    }
    for (int64_t i = 0; i < count; ++i) {
      float* weight = scratch + i * n;
      for (int64_t c = 0; c < n; ++c) {
        weight[c] = std::exp(rows[i].gate[begin + c] - max[c]);
        sum[c] += weight[c];
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      const float* weight = scratch + i * n;
      for (int64_t c = 0; c < n; ++c) pooled[c] += weight[c] / sum[c] * rows[i].value[begin + c];
    }
    std::copy_n(pooled, n, out + begin);
  }
}

}  // namespace reprise::kernels::cpu
