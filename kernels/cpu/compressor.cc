// Block pooling; loops run over channels inside, so that they vectorise and keep one order over the
// rows.
#include "kernels/cpu/compressor.h"

#include <algorithm>

#include "kernels/cpu/avx2.h"
#include "kernels/exp.h"

namespace reprise::kernels::cpu {
namespace {

// kCount channels from `begin` on; `scratch` has count * kCount elements.
template <int64_t kCount>
REPRISE_INLINE void PoolChannels(const PoolRow* rows, int64_t count, int64_t begin, float* scratch,
                                 float* out) {
  float max[kCount], sum[kCount] = {}, pooled[kCount] = {};
  for (int64_t c = 0; c < kCount; ++c) max[c] = rows[0].gate[begin + c];
  for (int64_t i = 1; i < count; ++i) {
    const float* gate = rows[i].gate + begin;
    for (int64_t c = 0; c < kCount; ++c) max[c] = gate[c] > max[c] ? gate[c] : max[c];
  }
  for (int64_t i = 0; i < count; ++i) {
    const float* gate = rows[i].gate + begin;
    float* weight = scratch + i * kCount;
    for (int64_t c = 0; c < kCount; ++c) {
      weight[c] = Exp(gate[c] - max[c]);
      sum[c] += weight[c];
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const float* value = rows[i].value + begin;
    const float* weight = scratch + i * kCount;
    for (int64_t c = 0; c < kCount; ++c) pooled[c] += weight[c] / sum[c] * value[c];
  }
  for (int64_t c = 0; c < kCount; ++c) out[begin + c] = pooled[c];
}

REPRISE_INLINE void Pool(const PoolRow* rows, int64_t count, int64_t dim, float* scratch,
                         float* out) {
  int64_t c = 0;
  for (; c + 32 <= dim; c += 32) PoolChannels<32>(rows, count, c, scratch, out);
  for (; c + 8 <= dim; c += 8) PoolChannels<8>(rows, count, c, scratch, out);
  for (; c < dim; ++c) PoolChannels<1>(rows, count, c, scratch, out);
}

REPRISE_AVX2 void PoolAvx2(const PoolRow* rows, int64_t count, int64_t dim, float* scratch,
                           float* out) {
  Pool(rows, count, dim, scratch, out);
}

}  // namespace

void PoolBlock(const PoolRow* rows, int64_t count, int64_t dim, float* scratch, float* out) {
  internal::HasAvx2() ? PoolAvx2(rows, count, dim, scratch, out)
                      : Pool(rows, count, dim, scratch, out);
}

}  // namespace reprise::kernels::cpu
