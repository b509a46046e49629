// Clamped SwiGLU.
#include "kernels/cpu/swiglu.h"

#include "kernels/cpu/avx2.h"
#include "kernels/exp.h"

namespace reprise::kernels::cpu {
namespace {

REPRISE_INLINE void Activate(const float* gate, const float* up, int64_t n, float limit,
                             float weight, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = gate[i] > limit ? limit : gate[i];
    const float u = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];
    out[i] = g / (1.0f + Exp(-g)) * u * weight;
  }
}

REPRISE_AVX2 void ActivateAvx2(const float* gate, const float* up, int64_t n, float limit,
                               float weight, float* out) {
  Activate(gate, up, n, limit, weight, out);
}

}  // namespace

void SwiGlu(const float* gate, const float* up, int64_t n, float limit, float weight, float* out) {
  internal::HasAvx2() ? ActivateAvx2(gate, up, n, limit, weight, out)
                      : Activate(gate, up, n, limit, weight, out);
}

}  // namespace reprise::kernels::cpu
