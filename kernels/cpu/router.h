// Mixture-of-experts routing of one token: scores sqrt(softplus(z)), choice by score + bias or by table, weights.
#pragma once

#include <cstdint>

namespace reprise::kernels::cpu {

// In place: logits[n] become sqrt(softplus(logits)).
void SqrtSoftplus(float* logits, int64_t n);

// The k experts of highest scores[e] + bias[e], best first; equal sums go to the lower expert.
void ChooseExperts(const float* scores, const float* bias, int64_t experts, int64_t k, uint16_t* chosen);

// weights[i] = scale * scores[chosen[i]], divided by the sum of the chosen scores when `normalise`.
void ExpertWeights(const float* scores, const uint16_t* chosen, int64_t k, float scale, bool normalise, float* weights);

}  // namespace reprise::kernels::cpu
