// Norms: the sum of squares is a dot product, so it has the fixed order of dot.h.
#include "kernels/cpu/rmsnorm.h"

#include <cmath>

#include "kernels/cpu/dot.h"

namespace reprise::kernels::cpu {

float RmsScale(const float* x, int64_t n, float eps) {
  return 1.0f / std::sqrt(Dot(x, x, n) / static_cast<float>(n) + eps);
}

void RmsNorm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  const float scale = RmsScale(x, n, eps);
  if (weight == nullptr) {
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale;
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = weight[i] * (x[i] * scale);
  }
}

}  // namespace reprise::kernels::cpu
