// Root-mean-square norm of one row: out = w * x / sqrt(mean(x^2) + eps).
#pragma once

#include <cstdint>

namespace reprise::kernels::cpu {

// 1 / sqrt(mean(x^2) + eps) of x[n].
float RmsScale(const float* x, int64_t n, float eps);

// `weight` is [n], or nullptr for the unweighted form. `out` may be `x`.
void RmsNorm(const float* x, const float* weight, int64_t n, float eps, float* out);

}  // namespace reprise::kernels::cpu
