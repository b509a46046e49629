// Attention with sinks: logits, softmax whose denominator alone holds the sink, weighted sum.
#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/dot.h"

namespace reprise::kernels::cpu {

void Attend(const float* q, int64_t heads, int64_t dim, const float* const* rows, int64_t count, const float* sinks,
            float scale, float* scratch, float* out) {
  DotRows(q, dim, heads, rows, count, dim, scratch, count);
  for (int64_t h = 0; h < heads; ++h) {
    float* p = scratch + h * count;
    float max = sinks[h];
    for (int64_t j = 0; j < count; ++j) {
      p[j] *= scale;
      max = std::max(max, p[j]);
    }
    float sum = std::exp(sinks[h] - max);
    for (int64_t j = 0; j < count; ++j) {
      p[j] = std::exp(p[j] - max);
      sum += p[j];
    }
    for (int64_t j = 0; j < count; ++j) p[j] /= sum;
  }
  WeightedRows(scratch, heads, rows, count, dim, out);
}

}  // namespace reprise::kernels::cpu
