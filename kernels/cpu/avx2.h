// What the AVX2 files share: the target attribute, partial vectors, and the sum of lanes. Internal
// to kernels/cpu. A function that is written once in plain C++ can be compiled for both paths:
// REPRISE_INLINE for the body, a REPRISE_AVX2 function that calls it, and HasAvx2 to choose.
// Nothing is contracted, so both give the same bits.
#pragma once

#include <cstdint>

#define REPRISE_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)
#include <immintrin.h>

#define REPRISE_AVX2 __attribute__((target("avx2,fma,f16c")))
#else
#define REPRISE_AVX2
#endif

namespace reprise::kernels::cpu::internal {

// What the functions marked REPRISE_AVX2 need: AVX2, FMA, F16C.
inline bool HasAvx2() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("f16c");
  return has;
#else
  return false;
#endif
}

#if defined(__x86_64__)

inline constexpr int64_t kLanes = 8;

// The first `left` lanes are set, 0 <= left <= 8.
REPRISE_AVX2 inline __m256i TailMask(int64_t left) {
  alignas(32) static constexpr int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                    0,  0,  0,  0,  0,  0,  0,  0};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + kLanes - left));
}

// The sum of the lanes in the tree that dot.h fixes.
REPRISE_AVX2 inline float ReduceLanes(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// The same of four vectors at once.
REPRISE_AVX2 inline __m128 ReduceLanes(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 ac =
      _mm256_add_ps(_mm256_permute2f128_ps(a, c, 0x20), _mm256_permute2f128_ps(a, c, 0x31));
  const __m256 bd =
      _mm256_add_ps(_mm256_permute2f128_ps(b, d, 0x20), _mm256_permute2f128_ps(b, d, 0x31));
  // Even and odd sums of a and b in the low half, of c and d in the high one.
  const __m256 two =
      _mm256_add_ps(_mm256_shuffle_ps(ac, bd, 0x44), _mm256_shuffle_ps(ac, bd, 0xEE));
  const __m128 low = _mm256_castps256_ps128(two), high = _mm256_extractf128_ps(two, 1);
  return _mm_add_ps(_mm_shuffle_ps(low, high, 0x88), _mm_shuffle_ps(low, high, 0xDD));
}

#endif

}  // namespace reprise::kernels::cpu::internal
