// Rotary embedding on interleaved pairs of the last dims of a vector, with optional YaRN frequencies.
// Angles are float32(position) * float32(frequency) rounded to float32, as the reference computes them.
#pragma once

#include <cstdint>
#include <vector>

namespace reprise::kernels::cpu {

struct YarnParams {
  float factor = 1.0f;
  float original_context = 65536.0f;
  float beta_fast = 32.0f;
  float beta_slow = 1.0f;
};

// Frequencies of dim/2 pairs for base `theta`; `yarn` may be nullptr for none. No magnitude factor exists.
std::vector<float> RopeFrequencies(int64_t dim, float theta, const YarnParams* yarn);

// cos and sin, [pairs] each, of one position.
void RopeAngles(const float* frequencies, int64_t pairs, int64_t position, float* cos, float* sin);

// Rotates the last 2 * pairs elements of x[n] in place; `inverse` rotates back.
void ApplyRope(float* x, int64_t n, int64_t pairs, const float* cos, const float* sin, bool inverse);

}  // namespace reprise::kernels::cpu
