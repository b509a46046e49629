// Rotary tables and rotation.
#include "kernels/cpu/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace reprise::kernels::cpu {

std::vector<float> RopeFrequencies(int64_t dim, float theta, const YarnParams* yarn) {
  const int64_t pairs = dim / 2;
  std::vector<float> out(static_cast<size_t>(pairs));
  for (int64_t i = 0; i < pairs; ++i) {
    out[i] = 1.0f / std::pow(theta, static_cast<float>(2 * i) / static_cast<float>(dim));
  }
  if (yarn == nullptr) return out;
  const auto correction = [&](double beta) {
    return static_cast<double>(dim) * std::log(yarn->original_context / (2 * std::numbers::pi * beta)) /
           (2 * std::log(static_cast<double>(theta)));
  };
  const double low = std::max(std::floor(correction(yarn->beta_fast)), 0.0);
  double high = std::min(std::ceil(correction(yarn->beta_slow)), static_cast<double>(dim - 1));
  if (high == low) high += 0.001;  // a step instead of a division by zero
  for (int64_t i = 0; i < pairs; ++i) {
    const float ramp = static_cast<float>(std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0));
    const float keep = 1.0f - ramp;
    out[i] = out[i] / yarn->factor * (1.0f - keep) + out[i] * keep;
  }
  return out;
}

void RopeAngles(const float* frequencies, int64_t pairs, int64_t position, float* cos, float* sin) {
  for (int64_t i = 0; i < pairs; ++i) {
    const float angle = static_cast<float>(position) * frequencies[i];
    cos[i] = std::cos(angle);
    sin[i] = std::sin(angle);
  }
}

void ApplyRope(float* x, int64_t n, int64_t pairs, const float* cos, const float* sin, bool inverse) {
  float* tail = x + n - 2 * pairs;
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = tail[2 * i];
    const float b = tail[2 * i + 1];
    const float s = inverse ? -sin[i] : sin[i];
    tail[2 * i] = a * cos[i] - b * s;
    tail[2 * i + 1] = a * s + b * cos[i];
  }
}

}  // namespace reprise::kernels::cpu
