// Sums of rows, a few columns at a time, so that they stay in registers.
#include "kernels/cpu/combine.h"

#include "kernels/cpu/avx2.h"

namespace reprise::kernels::cpu {
namespace {

template <int64_t kCount>
REPRISE_INLINE void AddColumns(const float* const* rows, int64_t count, int64_t at, float* out) {
  float sum[kCount];
  for (int64_t i = 0; i < kCount; ++i) sum[i] = rows[0][at + i];
  for (int64_t j = 1; j < count; ++j) {
    for (int64_t i = 0; i < kCount; ++i) sum[i] += rows[j][at + i];
  }
  for (int64_t i = 0; i < kCount; ++i) out[at + i] = sum[i] + out[at + i];
}

REPRISE_INLINE void Add(const float* const* rows, int64_t count, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) AddColumns<32>(rows, count, i, out);
  for (; i < n; ++i) AddColumns<1>(rows, count, i, out);
}

REPRISE_AVX2 void AddAvx2(const float* const* rows, int64_t count, int64_t n, float* out) {
  Add(rows, count, n, out);
}

}  // namespace

void AddRows(const float* const* rows, int64_t count, int64_t n, float* out) {
  internal::HasAvx2() ? AddAvx2(rows, count, n, out) : Add(rows, count, n, out);
}

}  // namespace reprise::kernels::cpu
