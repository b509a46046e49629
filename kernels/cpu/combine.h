// The outputs of a token's experts added up.
#pragma once

#include <cstdint>

namespace reprise::kernels::cpu {

// out[i] = (rows[0][i] + rows[1][i] + ...) + out[i], rows in the given order; `count` >= 1 vectors
// of [n].
void AddRows(const float* const* rows, int64_t count, int64_t n, float* out);

}  // namespace reprise::kernels::cpu
