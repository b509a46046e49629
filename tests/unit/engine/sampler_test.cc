// The sampler: each cut and penalty against numbers worked out by hand, and what it reports.
#include "engine/sampler.h"

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace reprise::engine {
namespace {

using testing::HasSubstr;

// ln of 0.5, 0.25, 0.125, 0.0625, 0.0625; ids in no order of probability.
const std::vector<float> kLogits = {std::log(0.125f), std::log(0.5f), std::log(0.0625f),
                                    std::log(0.25f), std::log(0.0625f)};

// What 20000 seeds draw, as shares.
std::map<int32_t, double> Shares(const std::vector<float>& logits, SamplingParams params,
                                 const std::vector<int32_t>& history = {}) {
  constexpr int kDraws = 20000;
  std::map<int32_t, double> shares;
  for (int seed = 0; seed < kDraws; ++seed) {
    params.seed = static_cast<uint64_t>(seed);
    const auto token = Sample(logits, params, history);
    EXPECT_TRUE(token.ok()) << token.status();
    shares[token->id] += 1.0 / kDraws;
  }
  return shares;
}

void ExpectShares(const std::map<int32_t, double>& found,
                  const std::map<int32_t, double>& expected) {
  EXPECT_EQ(found.size(), expected.size());
  for (const auto& [id, share] : expected) {
    ASSERT_EQ(found.count(id), 1u) << id;
    EXPECT_NEAR(found.at(id), share, 0.015) << id;
  }
}

TEST(SamplerTest, PlainDrawsFollowTheProbabilities) {
  ExpectShares(Shares(kLogits, {}), {{1, 0.5}, {3, 0.25}, {0, 0.125}, {2, 0.0625}, {4, 0.0625}});
}

TEST(SamplerTest, TopKKeepsTheBestTheLowerIdFirst) {
  ExpectShares(Shares(kLogits, {.top_k = 2}), {{1, 2.0 / 3}, {3, 1.0 / 3}});
  ExpectShares(Shares(kLogits, {.top_k = 4}),
               {{1, 8.0 / 15}, {3, 4.0 / 15}, {0, 2.0 / 15}, {2, 1.0 / 15}});
  ExpectShares(Shares(kLogits, {.top_k = 1}), {{1, 1.0}});
}

TEST(SamplerTest, MinPIsRelativeToTheBest) {
  ExpectShares(Shares(kLogits, {.min_p = 0.4f}), {{1, 2.0 / 3}, {3, 1.0 / 3}});
  ExpectShares(Shares(kLogits, {.min_p = 1}), {{1, 1.0}});
}

TEST(SamplerTest, TopPCountsWhatTopKLeft) {
  // Of 4 and 2 and 1 sevenths, 0.8 needs the first two.
  ExpectShares(Shares(kLogits, {.top_p = 0.8f, .top_k = 3}), {{1, 2.0 / 3}, {3, 1.0 / 3}});
  ExpectShares(Shares(kLogits, {.top_p = 0.8f}), {{1, 4.0 / 7}, {3, 2.0 / 7}, {0, 1.0 / 7}});
}

TEST(SamplerTest, TemperatureSharpens) {
  // Squares: 64, 16, 4, 1, 1 of 86.
  ExpectShares(Shares(kLogits, {.temperature = 0.5f}),
               {{1, 64.0 / 86}, {3, 16.0 / 86}, {0, 4.0 / 86}, {2, 1.0 / 86}, {4, 1.0 / 86}});
}

TEST(SamplerTest, BiasIsAdded) {
  SamplingParams params;
  params.logit_bias = {{2, std::log(8.0f)}, {1, -1000}};
  ExpectShares(Shares(kLogits, params),
               {{2, 0.5 / 0.9375}, {3, 0.25 / 0.9375}, {0, 0.125 / 0.9375}, {4, 0.0625 / 0.9375}});
}

TEST(SamplerTest, PenaltiesCountTokens) {
  const std::vector<float> logits = {2, -1, 0.5f, 0};
  const std::vector<int32_t> history = {0, 1, 2, 2, 2};
  SamplingParams params;
  params.temperature = 0;
  params.top_logprobs = 4;
  // Repetition sees the prompt; 2 / 4 is now even with 0.5 / 4 = 0.125 far below.
  params.repetition_penalty = 4;
  EXPECT_EQ(Sample(logits, params, history)->id, 0);
  params.repetition_penalty = 100;  // 0.02, -100, 0.005, and 0 unseen
  EXPECT_EQ(Sample(logits, params, history)->id, 0);
  // Frequency and presence see only what was sampled: position 3 and later, token 2 twice.
  params = {.temperature = 0, .frequency_penalty = -0.75f, .prompt_tokens = 3};
  EXPECT_EQ(Sample(logits, params, history)->id, 0);  // 0.5 + 1.5 = 2: even, the lower id
  params.frequency_penalty = -0.76f;
  EXPECT_EQ(Sample(logits, params, history)->id, 2);
  params.prompt_tokens = 4;  // once: 1.26
  EXPECT_EQ(Sample(logits, params, history)->id, 0);
  params = {.temperature = 0, .presence_penalty = 1.6f};
  EXPECT_EQ(Sample(logits, params, history)->id, 0);  // 0.4; token 3 has 0
  params.presence_penalty = 2.1f;
  EXPECT_EQ(Sample(logits, params, history)->id, 3);
}

TEST(SamplerTest, ReportsBothLogprobsAndTheBestTokens) {
  SamplingParams params = {.top_k = 2, .top_logprobs = 4};
  for (uint64_t seed = 0; seed < 20; ++seed) {
    params.seed = seed;
    const auto token = Sample(kLogits, params, {});
    ASSERT_TRUE(token.ok());
    EXPECT_NEAR(token->logprob, std::log(token->id == 1 ? 2.0 / 3 : 1.0 / 3), 1e-6);
    EXPECT_NEAR(token->raw_logprob, kLogits[static_cast<size_t>(token->id)], 1e-6);
    ASSERT_EQ(token->top.size(), 4u);
    const int32_t ids[] = {1, 3, 0, 2};
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(token->top[i].id, ids[i]);
      EXPECT_NEAR(token->top[i].raw_logprob, kLogits[static_cast<size_t>(ids[i])], 1e-6);
    }
    EXPECT_NEAR(token->top[0].logprob, std::log(2.0 / 3), 1e-6);
    EXPECT_EQ(token->top[2].logprob, -std::numeric_limits<float>::infinity());
    EXPECT_EQ(token->logprob, token->top[token->id == 1 ? 0 : 1].logprob);
  }
  params.temperature = 0;
  params.stop_ids = {7, 1};
  const auto greedy = Sample(kLogits, params, {});
  EXPECT_EQ(greedy->id, 1);
  EXPECT_TRUE(greedy->stop);
  EXPECT_EQ(greedy->logprob, 0);
  params.stop_ids = {3};
  EXPECT_FALSE(Sample(kLogits, params, {})->stop);
}

// The draw is keyed by seed and position: nothing else moves it.
TEST(SamplerTest, ADrawDependsOnSeedAndPosition) {
  const std::vector<float> flat(1000, 0.0f);
  SamplingParams params;
  params.seed = 5;
  const std::vector<int32_t> a(10, 1), b(10, 2), c(11, 1);
  EXPECT_EQ(Sample(flat, params, a)->id, Sample(flat, params, b)->id);
  EXPECT_NE(Sample(flat, params, a)->id, Sample(flat, params, c)->id);
  params.seed = 6;
  const int32_t other = Sample(flat, params, a)->id;
  params.seed = 5;
  EXPECT_NE(Sample(flat, params, a)->id, other);
}

TEST(SamplerTest, ParametersOutOfRangeAreNamed) {
  const std::vector<std::pair<SamplingParams, const char*>> cases = {
      {{.temperature = -1}, "temperature"},
      {{.temperature = NAN}, "temperature"},
      {{.top_p = 0}, "top_p"},
      {{.top_k = -1}, "top_k"},
      {{.min_p = 1.5f}, "min_p"},
      {{.repetition_penalty = 0}, "repetition_penalty"},
      {{.frequency_penalty = 101}, "frequency_penalty"},
      {{.presence_penalty = NAN}, "presence_penalty"},
      {{.logit_bias = {{5, 0.0f}}}, "logit_bias"},
      {{.logit_bias = {{1, 2000.0f}}}, "logit_bias"},
      {{.top_logprobs = 5000}, "top_logprobs"},
  };
  for (const auto& [params, name] : cases) {
    const absl::Status status = CheckSampling(params, 5);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  }
  EXPECT_TRUE(CheckSampling({}, 5).ok());
  EXPECT_EQ(Sample(std::vector<float>{0, NAN}, {}, {}).status().code(),
            absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace reprise::engine
