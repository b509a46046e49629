// The MTP block against torch (tests/golden/model/make_quantised.py), and speculation: the same
// tokens with it as without, whatever is guessed.
#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/checkpoint.h"
#include "engine/engine.h"
#include "engine/model.h"
#include "tests/unit/engine/model_files.h"

namespace reprise::engine {
namespace {

constexpr size_t kVocab = 272;

std::string ModelPath() {
  return std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model/quantised/csa";
}

template <typename T>
std::vector<T> Read(const TensorView& view) {
  std::vector<T> out(view.bytes / sizeof(T));
  std::memcpy(out.data(), view.data, view.bytes);
  return out;
}

TEST(MtpTest, LogitsAgreeWithTorch) {
  auto config = LoadConfig(ModelPath());
  auto checkpoint = Checkpoint::Open(ModelPath());
  ASSERT_TRUE(config.ok() && checkpoint.ok());
  auto weights = BindWeights(**checkpoint, *config);
  ASSERT_TRUE(weights.ok()) << weights.status();
  const Model model(&*config, /*reference=*/true, /*mtp=*/true);
  auto file = SafetensorsFile::Open(ModelPath() + "/golden.safetensors");
  ASSERT_TRUE(file.ok());
  const auto& tensors = (*file)->tensors();
  int positions = 0, close = 0, greedy = 0;
  for (int c = 1; tensors.count(fmt::format("case{}.ids", c)) != 0; ++c) {
    const std::string name = fmt::format("case{}.", c);
    std::vector<int32_t> ids;
    for (int64_t id : Read<int64_t>(tensors.at(name + "ids")))
      ids.push_back(static_cast<int32_t>(id));
    const size_t flat = static_cast<size_t>(config->hc_streams * config->hidden_size);
    std::vector<float> residual(ids.size() * flat), logits((ids.size() - 1) * kVocab);
    KvState kv(&model.layout());
    Workspace workspace;
    Segment segment;
    segment.kv = &kv;
    segment.tokens = ids;
    segment.residual = residual.data();
    model.Forward(*weights, {&segment, 1}, nullptr, &workspace);
    // In two pieces: the second finds the first in the block's window.
    const size_t cut = ids.size() / 2;
    for (const auto& [from, to] : {std::pair<size_t, size_t>{0, cut}, {cut, ids.size() - 1}}) {
      if (from == to) continue;
      segment.start = static_cast<int64_t>(from);
      segment.tokens = absl::MakeConstSpan(ids).subspan(from + 1, to - from);
      segment.residual = residual.data() + from * flat;
      segment.logits = logits.data() + from * kVocab;
      segment.logit_rows = static_cast<int64_t>(to - from);
      model.Draft(*weights, {&segment, 1}, nullptr, &workspace);
    }
    const auto golden = Read<float>(tensors.at(name + "mtp_logits"));
    const auto kept = Read<int64_t>(tensors.at(name + "positions"));
    float largest = 0;
    for (float logit : golden) largest = std::max(largest, std::abs(logit));
    const float near = 2 * std::ldexp(1.0f, std::ilogb(largest) - 7);  // 2 bfloat16 ulps
    double distance = 0;
    for (size_t i = 0; i * kVocab < golden.size(); ++i) {
      const float* a = logits.data() + static_cast<size_t>(kept[i]) * kVocab;
      const float* b = golden.data() + i * kVocab;
      float difference = 0;
      for (size_t v = 0; v < kVocab; ++v) {
        difference = std::max(difference, std::abs(a[v] - b[v]));
        distance += std::abs(a[v] - b[v]) / static_cast<double>(golden.size());
      }
      ++positions;
      close += difference <= near;
      greedy += std::max_element(a, a + kVocab) - a == std::max_element(b, b + kVocab) - b;
    }
    // The golden is no closer to its own float64 run; make_quantised.py says why.
    if (ids.size() > 100) {
      EXPECT_LE(distance, 1.5 * Read<float>(tensors.at(name + "noise"))[1]);
    }
  }
  printf("  %d positions, close %d, greedy %d\n", positions, close, greedy);
  ASSERT_GT(positions, 90);
  EXPECT_GE(close, 0.5 * positions);
  EXPECT_GE(greedy, 0.97 * positions);
}

class SpeculateTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::make_unique<ModelDirectory>(ModelPath());
    plain_ = Load(false);
    guessing_ = Load(true);
    for (int i = 0; i < 140; ++i) prompt_.push_back((i * 31 + i * i) % 272);
  }
  std::unique_ptr<Engine> Load(bool speculate) {
    EngineOptions options;
    options.threads = 2;
    options.speculate = speculate;
    auto engine = Engine::Load(directory_->path(), options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? *std::move(engine) : nullptr;
  }
  // Ids and logprobs of `count` tokens or up to a stop, of several sequences in one batch.
  std::vector<std::vector<std::pair<int32_t, float>>> Generate(
      Engine* engine, const std::vector<SamplingParams>& sampling, size_t count) {
    std::vector<std::vector<std::pair<int32_t, float>>> out(sampling.size());
    std::vector<std::unique_ptr<Sequence>> sequences;
    std::vector<std::vector<int32_t>> ids(sampling.size(), prompt_);
    std::vector<bool> done(sampling.size(), false);
    for (size_t i = 0; i < sampling.size(); ++i) sequences.push_back(engine->NewSequence());
    while (true) {
      std::vector<StepItem> items;
      std::vector<size_t> who;
      for (size_t i = 0; i < sampling.size(); ++i) {
        if (done[i]) continue;
        StepItem item;
        item.sequence = sequences[i].get();
        item.tokens =
            absl::MakeConstSpan(ids[i]).subspan(static_cast<size_t>(sequences[i]->length()));
        item.sampling = &sampling[i];
        item.max_samples = out[i].size() + 1 < count ? 2 : 1;
        item.want_routes = true;
        items.push_back(item);
        who.push_back(i);
      }
      if (items.empty()) return out;
      const absl::Status status = engine->Step(absl::MakeSpan(items));
      EXPECT_TRUE(status.ok()) << status;
      for (size_t j = 0; j < items.size(); ++j) {
        const size_t i = who[j];
        const size_t fed = items[j].tokens.size() + items[j].sampled.size() - 1;
        EXPECT_EQ(items[j].routes.size(), fed * 2);  // one layer, two experts
        EXPECT_EQ(items[j].sampled_id, items[j].sampled[0].id);
        for (const SampledToken& token : items[j].sampled) {
          EXPECT_FALSE(done[i]) << "a token after a stop";
          out[i].emplace_back(token.id, token.logprob);
          ids[i].push_back(token.id);
          done[i] = token.stop || out[i].size() == count;
        }
      }
    }
  }

  std::unique_ptr<ModelDirectory> directory_;
  std::unique_ptr<Engine> plain_, guessing_;
  std::vector<int32_t> prompt_;
};

TEST_F(SpeculateTest, TokensAreTheSame) {
  std::vector<SamplingParams> sampling(8);
  for (size_t i = 0; i < sampling.size(); ++i) sampling[i].seed = 100 + i;
  sampling[1].temperature = 0;
  sampling[2].temperature = 0.5f;
  sampling[3].top_p = 0.8f;
  sampling[4].repetition_penalty = 1.3f;
  sampling[5].frequency_penalty = 0.5f;
  sampling[5].prompt_tokens = 140;
  // A few tokens, about equally likely in both distributions: most guesses are right.
  sampling[6].temperature = sampling[7].temperature = 20;
  sampling[6].logit_bias = {{3, 1000}, {77, 1000}, {150, 1000}};
  sampling[7].logit_bias = {{3, 900}, {77, 1000}, {9, 1000}};
  sampling[7].stop_ids = {3};
  const auto expected = Generate(plain_.get(), sampling, 120);
  const auto found = Generate(guessing_.get(), sampling, 120);
  EXPECT_EQ(found, expected);
  const EngineStats stats = guessing_->stats();
  printf("  %ld of %ld guesses right\n", static_cast<long>(stats.right_guesses),
         static_cast<long>(stats.guesses));
  EXPECT_GT(stats.right_guesses, 30);
  EXPECT_LT(stats.right_guesses, stats.guesses);
  EXPECT_EQ(plain_->stats().guesses, 0);
}

// What is fed need not be what was sampled: the guess is dropped.
TEST_F(SpeculateTest, AnotherTokenThanTheSampledMayBeFed) {
  SamplingParams sampling;
  sampling.logit_bias = {{3, 200}, {77, 200}};
  const auto a = plain_->NewSequence(), b = guessing_->NewSequence();
  std::vector<int32_t> ids = prompt_;
  for (int turn = 0; turn < 60; ++turn) {
    StepItem item;
    item.sampling = &sampling;
    for (const auto& [engine, sequence] :
         {std::pair{plain_.get(), a.get()}, {guessing_.get(), b.get()}}) {
      StepItem step = item;
      step.sequence = sequence;
      step.tokens = absl::MakeConstSpan(ids).subspan(static_cast<size_t>(sequence->length()));
      ASSERT_TRUE(engine->Step(absl::MakeSpan(&step, 1)).ok());
      if (sequence == a.get()) item.sampled_id = step.sampled_id;
      ASSERT_EQ(step.sampled_id, item.sampled_id) << turn;
    }
    ids.push_back(turn % 3 == 0 ? 5 : item.sampled_id);
  }
}

TEST_F(SpeculateTest, ACheckpointWithoutTheBlockIsRefused) {
  ModelDirectory other(std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model/two-streams");
  EngineOptions options;
  options.speculate = true;
  const auto engine = Engine::Load(other.path(), options);
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(engine.status().message()), testing::HasSubstr("no MTP block"));
}

}  // namespace
}  // namespace reprise::engine
