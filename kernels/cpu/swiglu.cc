// Clamped SwiGLU.
#include "kernels/cpu/swiglu.h"

#include <algorithm>
#include <cmath>

namespace reprise::kernels::cpu {

void SwiGlu(const float* gate, const float* up, int64_t n, float limit, float weight, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = std::min(gate[i], limit);
    const float u = std::clamp(up[i], -limit, limit);
    out[i] = g / (1.0f + std::exp(-g)) * u * weight;
  }
}

}  // namespace reprise::kernels::cpu
