// The experts' activation: clamp, then silu(gate) * up, times a routing weight.
#pragma once

#include <cstdint>

namespace reprise::kernels::cpu {

// out[i] = silu(min(gate[i], limit)) * clamp(up[i], -limit, limit) * weight. `out` may be `gate` or `up`.
void SwiGlu(const float* gate, const float* up, int64_t n, float limit, float weight, float* out);

}  // namespace reprise::kernels::cpu
