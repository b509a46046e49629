#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "kernels/philox.h"

namespace reprise::engine {
namespace {

// ln sum_i e^{scale * (logits[i] - max)}, in double and in id order.
double LogSumExp(absl::Span<const float> logits, double max, double scale) {
  double sum = 0;
  for (float logit : logits) sum += std::exp((logit - max) * scale);
  return std::log(sum);
}

bool ChangesLogits(const SamplingParams& params) {
  return !params.logit_bias.empty() || params.repetition_penalty != 1 ||
         params.frequency_penalty != 0 || params.presence_penalty != 0;
}

std::vector<float> ChangedLogits(absl::Span<const float> logits, const SamplingParams& params,
                                 absl::Span<const int32_t> history) {
  std::vector<float> out(logits.begin(), logits.end());
  for (const auto& [id, bias] : params.logit_bias) out[static_cast<size_t>(id)] += bias;
  std::vector<uint8_t> seen(out.size(), 0);
  std::vector<int32_t> sampled(out.size(), 0);
  for (size_t i = 0; i < history.size(); ++i) {
    const size_t id = static_cast<size_t>(history[i]);
    seen[id] = 1;
    if (static_cast<int64_t>(i) >= params.prompt_tokens) ++sampled[id];
  }
  for (size_t id = 0; id < out.size(); ++id) {
    if (seen[id] == 0) continue;
    float& logit = out[id];
    if (logit > 0) {
      logit /= params.repetition_penalty;
    } else {
      logit *= params.repetition_penalty;
    }
    if (sampled[id] == 0) continue;
    logit -= params.frequency_penalty * static_cast<float>(sampled[id]) + params.presence_penalty;
  }
  return out;
}

// Those of `allowed`, ascending; nullptr: all.
std::vector<int32_t> AllowedIds(size_t vocab, const TokenSet* allowed) {
  std::vector<int32_t> ids(allowed == nullptr ? vocab : 0);
  std::iota(ids.begin(), ids.end(), 0);
  if (allowed == nullptr) return ids;
  ids.reserve(static_cast<size_t>(allowed->count));
  for (size_t word = 0; word < allowed->bits.size(); ++word) {
    for (uint64_t bits = allowed->bits[word]; bits != 0; bits &= bits - 1)
      ids.push_back(static_cast<int32_t>(word * 64) + std::countr_zero(bits));
  }
  return ids;
}

// Of `ids`, ascending, those that min_p, top_k and top_p leave. `log_sum` is that of all of them.
std::vector<int32_t> Candidates(absl::Span<const float> logits, std::vector<int32_t> ids,
                                double max, double scale, double log_sum,
                                const SamplingParams& params) {
  if (params.top_p >= 1 && params.min_p <= 0 && params.top_k == 0) return ids;
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  size_t kept = ids.size();
  if (params.min_p > 0) {
    const double least = std::log(static_cast<double>(params.min_p));
    kept = 1;
    while (kept < ids.size() && (logits[ids[kept]] - max) * scale >= least) ++kept;
  }
  if (params.top_k > 0) kept = std::min(kept, static_cast<size_t>(params.top_k));
  if (params.top_p < 1) {
    if (kept < ids.size()) {
      double sum = 0;
      for (size_t i = 0; i < kept; ++i) sum += std::exp((logits[ids[i]] - max) * scale);
      log_sum = std::log(sum);
    }
    double reached = 0;
    size_t nucleus = 0;
    while (nucleus < kept && reached < params.top_p)
      reached += std::exp((logits[ids[nucleus++]] - max) * scale - log_sum);
    kept = nucleus;
  }
  ids.resize(kept);
  std::sort(ids.begin(), ids.end());
  return ids;
}

// What a token was drawn from.
struct Distribution {
  std::vector<int32_t> candidates;  // ascending; greedy: the one
  double max = 0, scale = 0, log_sum = 0;

  float Logprob(absl::Span<const float> logits, int32_t id) const {
    if (!std::binary_search(candidates.begin(), candidates.end(), id))
      return -std::numeric_limits<float>::infinity();
    return static_cast<float>((logits[id] - max) * scale - log_sum);
  }
};

int32_t Draw(absl::Span<const float> logits, const SamplingParams& params, uint64_t position,
             Distribution* from) {
  std::vector<double> cumulative(from->candidates.size());
  double sum = 0;
  for (size_t i = 0; i < cumulative.size(); ++i)
    cumulative[i] = sum += std::exp((logits[from->candidates[i]] - from->max) * from->scale);
  from->log_sum = std::log(sum);
  const double target = kernels::UniformAt(params.seed, position) * sum;
  const size_t chosen = static_cast<size_t>(
      std::upper_bound(cumulative.begin(), cumulative.end(), target) - cumulative.begin());
  return from->candidates[std::min(chosen, cumulative.size() - 1)];
}

// The `count` highest raw logits.
std::vector<TokenLogprob> TopLogprobs(absl::Span<const float> raw, double raw_max,
                                      double raw_log_sum, absl::Span<const float> logits,
                                      const Distribution& from, int32_t count) {
  std::vector<int32_t> ids(raw.size());
  std::iota(ids.begin(), ids.end(), 0);
  const size_t kept = std::min(ids.size(), static_cast<size_t>(count));
  std::partial_sort(
      ids.begin(), ids.begin() + static_cast<ptrdiff_t>(kept), ids.end(),
      [&](int32_t a, int32_t b) { return raw[a] != raw[b] ? raw[a] > raw[b] : a < b; });
  std::vector<TokenLogprob> top;
  for (size_t i = 0; i < kept; ++i) {
    top.push_back({ids[i], from.Logprob(logits, ids[i]),
                   static_cast<float>(raw[ids[i]] - raw_max - raw_log_sum)});
  }
  return top;
}

// Takes what the constraint forbids out of `changed` (empty: `raw` as it is), and notes it in
// `token`. What it allows; nullptr: everything.
absl::StatusOr<std::shared_ptr<const TokenSet>> Constrain(absl::Span<const float> raw,
                                                          const SamplingParams& params,
                                                          absl::Span<const int32_t> history,
                                                          std::vector<float>* changed,
                                                          SampledToken* token) {
  std::shared_ptr<const TokenSet> allowed;
  if (params.constraint == nullptr) return allowed;
  ASSIGN_OR_RETURN(allowed, params.constraint->Allowed(history));
  if (allowed == nullptr || allowed->count == static_cast<int64_t>(raw.size()))
    return std::shared_ptr<const TokenSet>();
  if (allowed->count == 0) {
    return absl::InternalError(
        fmt::format("the constraint leaves no token at position {}", history.size()));
  }
  if (changed->empty()) changed->assign(raw.begin(), raw.end());
  const double scale = params.temperature == 0 ? 1.0 : 1.0 / double{params.temperature};
  const auto log_mass = [&] {
    const double max = *std::max_element(changed->begin(), changed->end());
    return max * scale + LogSumExp(*changed, max, scale);
  };
  const double before = log_mass();
  for (size_t id = 0; id < changed->size(); ++id) {
    if (!allowed->Has(static_cast<int32_t>(id)))
      (*changed)[id] = -std::numeric_limits<float>::infinity();
  }
  token->allowed = static_cast<int32_t>(allowed->count);
  token->allowed_logprob = static_cast<float>(std::min(0.0, log_mass() - before));
  return allowed;
}

absl::Status CheckRange(const char* name, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is {}; possible: {} to {}", name, value, low, high));
}

}  // namespace

absl::Status CheckSampling(const SamplingParams& params, int64_t vocab_size) {
  if (!(params.temperature >= 0 && params.temperature <= kTemperatureMax)) {
    return absl::InvalidArgumentError(
        fmt::format("temperature is {}; possible: 0 to {}", params.temperature, kTemperatureMax));
  }
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return absl::InvalidArgumentError(
        fmt::format("top_p is {}; possible: above 0, up to 1", params.top_p));
  }
  if (!(params.repetition_penalty > 0 && params.repetition_penalty <= kPenaltyMax)) {
    return absl::InvalidArgumentError(
        fmt::format("repetition_penalty is {}; possible: above 0, up to {}",
                    params.repetition_penalty, kPenaltyMax));
  }
  RETURN_IF_ERROR(CheckRange("top_k", params.top_k, 0, std::numeric_limits<int32_t>::max()));
  RETURN_IF_ERROR(CheckRange("min_p", params.min_p, 0, 1));
  RETURN_IF_ERROR(
      CheckRange("frequency_penalty", params.frequency_penalty, -kPenaltyMax, kPenaltyMax));
  RETURN_IF_ERROR(
      CheckRange("presence_penalty", params.presence_penalty, -kPenaltyMax, kPenaltyMax));
  RETURN_IF_ERROR(CheckRange("top_logprobs", params.top_logprobs, 0, kTopLogprobsMax));
  RETURN_IF_ERROR(CheckRange("kept_max", params.kept_max, 0, kKeptMax));
  for (const auto& [id, bias] : params.logit_bias) {
    RETURN_IF_ERROR(CheckRange("the token of a logit_bias", id, 0, vocab_size - 1));
    RETURN_IF_ERROR(CheckRange("logit_bias", bias, -kLogitBiasMax, kLogitBiasMax));
  }
  return absl::OkStatus();
}

absl::StatusOr<SampledToken> Sample(absl::Span<const float> raw, const SamplingParams& params,
                                    absl::Span<const int32_t> history) {
  for (size_t i = 0; i < raw.size(); ++i) {
    if (std::isfinite(raw[i])) continue;
    return absl::DataLossError(
        fmt::format("the logit of token {} at position {} is {}: the checkpoint is damaged", i,
                    history.size(), raw[i]));
  }
  const double raw_max = *std::max_element(raw.begin(), raw.end());
  const double raw_log_sum = LogSumExp(raw, raw_max, 1.0);
  std::vector<float> changed;
  if (ChangesLogits(params)) changed = ChangedLogits(raw, params, history);
  SampledToken token;
  ASSIGN_OR_RETURN(const std::shared_ptr<const TokenSet> allowed,
                   Constrain(raw, params, history, &changed, &token));
  const absl::Span<const float> logits = changed.empty() ? raw : absl::MakeConstSpan(changed);
  const auto best = std::max_element(logits.begin(), logits.end());
  Distribution from;
  from.max = *best;
  if (params.temperature == 0) {
    token.id = static_cast<int32_t>(best - logits.begin());
    from.candidates = {token.id};
  } else {
    from.scale = 1.0 / static_cast<double>(params.temperature);
    const double log_sum = params.temperature == 1.0f && changed.empty()
                               ? raw_log_sum
                               : LogSumExp(logits, from.max, from.scale);
    from.candidates = Candidates(logits, AllowedIds(logits.size(), allowed.get()), from.max,
                                 from.scale, log_sum, params);
    token.id = Draw(logits, params, history.size(), &from);
  }
  token.logprob = from.Logprob(logits, token.id);
  token.raw_logprob = static_cast<float>(raw[token.id] - raw_max - raw_log_sum);
  token.stop =
      std::find(params.stop_ids.begin(), params.stop_ids.end(), token.id) != params.stop_ids.end();
  if (params.top_logprobs > 0) {
    token.top = TopLogprobs(raw, raw_max, raw_log_sum, logits, from, params.top_logprobs);
  }
  const size_t left = from.candidates.size();
  if (left < logits.size() && left <= static_cast<size_t>(params.kept_max))
    token.kept = std::move(from.candidates);
  return token;
}

}  // namespace reprise::engine
