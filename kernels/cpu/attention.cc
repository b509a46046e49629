// Attention with sinks: logits, softmax whose denominator alone holds the sink, weighted sum.
#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/dot.h"
#include "kernels/cpu/formats.h"

namespace reprise::kernels::cpu {

void Attend(const float* q, int64_t heads, int64_t dim, const float* const* rows, int64_t count, const float* sinks,
            float scale, float* scratch, float* out, bool to_bf16) {
  DotRows(q, dim, heads, rows, count, dim, scratch, count);
  float* sums = scratch + heads * count;
  for (int64_t h = 0; h < heads; ++h) {
    float* p = scratch + h * count;
    // The rounded form is relative to the largest logit of a row, the other to the sink too.
    float max = to_bf16 ? p[0] * scale : sinks[h];
    for (int64_t j = 0; j < count; ++j) {
      p[j] *= scale;
      max = std::max(max, p[j]);
    }
    float sum = std::exp(sinks[h] - max);
    for (int64_t j = 0; j < count; ++j) {
      p[j] = std::exp(p[j] - max);
      sum += p[j];
    }
    sums[h] = sum;
    if (to_bf16) {
      for (int64_t j = 0; j < count; ++j) p[j] = RoundBf16(p[j]);
    } else {
      for (int64_t j = 0; j < count; ++j) p[j] /= sum;
    }
  }
  WeightedRows(scratch, heads, rows, count, dim, out);
  if (!to_bf16) return;
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t i = 0; i < dim; ++i) out[h * dim + i] /= sums[h];
  }
}

}  // namespace reprise::kernels::cpu
