#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "engine/philox.h"

namespace reprise::engine {
namespace {

// ln sum_i e^{scale * (logits[i] - max)}, in double and in id order.
double LogSumExp(absl::Span<const float> logits, double max, double scale) {
  double sum = 0;
  for (float logit : logits) sum += std::exp((logit - max) * scale);
  return std::log(sum);
}

// Ids of the nucleus in ascending order; all of them for top_p = 1.
std::vector<int32_t> Nucleus(absl::Span<const float> logits, double max, double scale,
                             double log_sum, float top_p) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  if (top_p >= 1.0f) return ids;
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  double reached = 0;
  size_t kept = 0;
  while (kept < ids.size() && reached < top_p)
    reached += std::exp((logits[ids[kept++]] - max) * scale - log_sum);
  ids.resize(kept);
  std::sort(ids.begin(), ids.end());
  return ids;
}

}  // namespace

absl::Status CheckSampling(const SamplingParams& params) {
  if (!(params.temperature >= 0 && params.temperature <= kTemperatureMax)) {
    return absl::InvalidArgumentError(
        fmt::format("temperature is {}; possible: 0 to {}", params.temperature, kTemperatureMax));
  }
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return absl::InvalidArgumentError(
        fmt::format("top_p is {}; possible: above 0, up to 1", params.top_p));
  }
  return absl::OkStatus();
}

absl::StatusOr<SampledToken> Sample(absl::Span<const float> logits, const SamplingParams& params,
                                    int64_t position) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isfinite(logits[i])) continue;
    return absl::DataLossError(
        fmt::format("the logit of token {} at position {} is {}: the checkpoint is damaged", i,
                    position, logits[i]));
  }
  const auto best = std::max_element(logits.begin(), logits.end());
  const double max = *best;
  const double raw_log_sum = LogSumExp(logits, max, 1.0);
  SampledToken token;
  if (params.temperature == 0) {
    token.id = static_cast<int32_t>(best - logits.begin());
  } else {
    const double scale = 1.0 / static_cast<double>(params.temperature);
    const double log_sum = params.temperature == 1.0f ? raw_log_sum : LogSumExp(logits, max, scale);
    const std::vector<int32_t> ids = Nucleus(logits, max, scale, log_sum, params.top_p);
    std::vector<double> cumulative(ids.size());
    double sum = 0;
    for (size_t i = 0; i < ids.size(); ++i)
      cumulative[i] = sum += std::exp((logits[ids[i]] - max) * scale);
    const double target = UniformAt(params.seed, static_cast<uint64_t>(position)) * sum;
    size_t chosen = static_cast<size_t>(
        std::upper_bound(cumulative.begin(), cumulative.end(), target) - cumulative.begin());
    chosen = std::min(chosen, ids.size() - 1);
    token.id = ids[chosen];
    token.logprob = static_cast<float>((logits[token.id] - max) * scale - std::log(sum));
  }
  token.raw_logprob = static_cast<float>(logits[token.id] - max - raw_log_sum);
  return token;
}

}  // namespace reprise::engine
