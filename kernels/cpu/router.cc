// Expert routing.
#include "kernels/cpu/router.h"

#include <algorithm>
#include <cmath>

namespace reprise::kernels::cpu {
namespace {
constexpr float kSoftplusThreshold = 20.0f;  // above it softplus(z) is z
}

void SqrtSoftplus(float* logits, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float z = logits[i];
    logits[i] = std::sqrt(z > kSoftplusThreshold ? z : std::log1p(std::exp(z)));
  }
}

void ChooseExperts(const float* scores, const float* bias, int64_t experts, int64_t k, uint16_t* chosen) {
  for (int64_t i = 0; i < k; ++i) {
    int64_t best = -1;
    for (int64_t e = 0; e < experts; ++e) {
      if (std::find(chosen, chosen + i, static_cast<uint16_t>(e)) != chosen + i) continue;
      if (best < 0 || scores[e] + bias[e] > scores[best] + bias[best]) best = e;
    }
    chosen[i] = static_cast<uint16_t>(best);
  }
}

void ExpertWeights(const float* scores, const uint16_t* chosen, int64_t k, float scale, bool normalise,
                   float* weights) {
  // Keeps the division defined when every chosen score underflows to 0.
  constexpr float kTiny = 1e-20f;
  float sum = 0;
  for (int64_t i = 0; i < k; ++i) sum += scores[chosen[i]];
  for (int64_t i = 0; i < k; ++i) {
    const float share = normalise ? scores[chosen[i]] / (sum + kTiny) : scores[chosen[i]];
    weights[i] = share * scale;
  }
}

}  // namespace reprise::kernels::cpu
