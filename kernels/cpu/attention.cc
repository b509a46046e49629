// Attention with sinks: logits, softmax whose denominator alone holds the sink, weighted sum.
#include "kernels/cpu/attention.h"

#include <algorithm>

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/dot.h"
#include "kernels/exp.h"
#include "kernels/formats.h"

namespace reprise::kernels::cpu {
namespace {

constexpr int64_t kSumLanes = 8;  // element j is added to lane j mod 8, the lanes in one tree

// Logits p[count] of a head become its weights; the denominator is returned. The rounded form is
// relative to the largest logit of a row and not divided, the other is relative to the sink too.
REPRISE_INLINE float Softmax(float* p, int64_t count, float sink, float scale, bool to_bf16) {
  float top[kSumLanes], lane[kSumLanes] = {};
  for (int64_t i = 0; i < kSumLanes; ++i) top[i] = to_bf16 ? p[0] * scale : sink;
  int64_t j = 0;
  for (; j + kSumLanes <= count; j += kSumLanes) {
    for (int64_t i = 0; i < kSumLanes; ++i) {
      p[j + i] *= scale;
      top[i] = p[j + i] > top[i] ? p[j + i] : top[i];
    }
  }
  for (; j < count; ++j) {
    p[j] *= scale;
    top[0] = p[j] > top[0] ? p[j] : top[0];
  }
  const float max = *std::max_element(top, top + kSumLanes);
  for (j = 0; j + kSumLanes <= count; j += kSumLanes) {
    for (int64_t i = 0; i < kSumLanes; ++i) {
      p[j + i] = Exp(p[j + i] - max);
      lane[i] += p[j + i];
    }
  }
  for (int64_t i = 0; j < count; ++i, ++j) {
    p[j] = Exp(p[j] - max);
    lane[i] += p[j];
  }
  const float sum = ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
                    ((lane[1] + lane[5]) + (lane[3] + lane[7])) + Exp(sink - max);
  if (to_bf16) {
    for (j = 0; j < count; ++j) p[j] = RoundBf16(p[j]);
  } else {
    for (j = 0; j < count; ++j) p[j] /= sum;
  }
  return sum;
}

REPRISE_AVX2 float SoftmaxAvx2(float* p, int64_t count, float sink, float scale, bool to_bf16) {
  return Softmax(p, count, sink, scale, to_bf16);
}

}  // namespace

void Attend(const float* q, int64_t heads, int64_t dim, const float* const* rows, int64_t count,
            const float* sinks, float scale, float* scratch, float* out, bool to_bf16) {
  DotRows(q, dim, heads, rows, count, dim, scratch, count);
  float* sums = scratch + heads * count;
  for (int64_t h = 0; h < heads; ++h) {
    float* p = scratch + h * count;
    sums[h] = internal::HasAvx2() ? SoftmaxAvx2(p, count, sinks[h], scale, to_bf16)
                                  : Softmax(p, count, sinks[h], scale, to_bf16);
  }
  WeightedRows(scratch, heads, rows, count, dim, out);
  if (!to_bf16) return;
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t i = 0; i < dim; ++i) out[h * dim + i] /= sums[h];
  }
}

}  // namespace reprise::kernels::cpu
