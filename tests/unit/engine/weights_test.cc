// Several checkpoints in one engine: each token under its own, states that two of them made, and
// checkpoints that do not fit.
#include <filesystem>
#include <fstream>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine.h"
#include "tests/unit/engine/model_files.h"

namespace reprise::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr size_t kPage = 128;

std::vector<int32_t> Tokens(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 600);
  return ids;
}

class WeightsTest : public testing::Test {
 protected:
  void SetUp() override {
    auto engine = Engine::Load(base_.path(), {.threads = 2});
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    Change(other_);
    auto loaded = engine_->LoadWeights(other_.path());
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    weights_ = *std::move(loaded);
  }
  // Another low mantissa bit in the last quarter of the tensors' bytes.
  static void Change(const ModelDirectory& directory) {
    std::string bytes = *base::ReadFile(directory.file("model.safetensors"));
    for (size_t at = bytes.size() / 4 * 3 & ~size_t{3}; at + 4 < bytes.size(); at += 4)
      bytes[at] = static_cast<char>(bytes[at] ^ 2);
    std::ofstream(directory.file("model.safetensors"), std::ios::binary) << bytes;
  }
  StepItem Feed(Sequence* sequence, absl::Span<const int32_t> tokens, const Weights* weights) {
    StepItem item;
    item.sequence = sequence;
    item.tokens = tokens;
    item.weights = weights;
    item.sampling = &sampling_;
    absl::Status status = engine_->Step(absl::MakeSpan(&item, 1));
    EXPECT_TRUE(status.ok()) << status;
    return item;
  }

  ModelDirectory base_{std::string(REPRISE_SOURCE_DIR) + "/examples/tiny-v4"};
  ModelDirectory other_{std::string(REPRISE_SOURCE_DIR) + "/examples/tiny-v4"};
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<const Weights> weights_;
  SamplingParams sampling_;
};

TEST_F(WeightsTest, EachTokenIsFedUnderItsOwnWeights) {
  auto alone = Engine::Load(other_.path(), {.threads = 1});
  ASSERT_TRUE(alone.ok());
  EXPECT_EQ(weights_->digest(), (*alone)->digest());
  EXPECT_NE(weights_->digest(), engine_->digest());
  const std::vector<int32_t> ids = Tokens(200, 1);
  StepItem expected;
  const auto theirs = (*alone)->NewSequence();
  expected.sequence = theirs.get();
  expected.tokens = ids;
  expected.sampling = &sampling_;
  ASSERT_TRUE((*alone)->Step(absl::MakeSpan(&expected, 1)).ok());
  // One step with both: the same tokens, so only the weights tell them apart.
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<StepItem> items(2);
  for (StepItem& item : items) {
    sequences.push_back(engine_->NewSequence());
    item.sequence = sequences.back().get();
    item.tokens = ids;
    item.sampling = &sampling_;
  }
  items[1].weights = weights_.get();
  ASSERT_TRUE(engine_->Step(absl::MakeSpan(items)).ok());
  EXPECT_EQ(items[1].raw_logprob, expected.raw_logprob);
  EXPECT_EQ(items[1].sampled_id, expected.sampled_id);
  EXPECT_NE(items[0].raw_logprob, items[1].raw_logprob);
  EXPECT_THAT(sequences[0]->origins(), ElementsAre(KvOrigin{engine_->digest(), 0}));
  EXPECT_THAT(sequences[1]->origins(), ElementsAre(KvOrigin{weights_->digest(), 0}));
}

TEST_F(WeightsTest, AStateOfTwoCheckpointsIsNeitherOnes) {
  const std::vector<int32_t> ids = Tokens(3 * kPage, 2);
  const auto head = absl::MakeConstSpan(ids).first(100),
             tail = absl::MakeConstSpan(ids).subspan(100);
  const auto mixed = engine_->NewSequence();
  Feed(mixed.get(), head, nullptr);
  const auto fork = mixed->Fork();
  const StepItem once = Feed(mixed.get(), tail, weights_.get());
  EXPECT_THAT(mixed->origins(),
              ElementsAre(KvOrigin{engine_->digest(), 0}, KvOrigin{weights_->digest(), 100}));
  // Nothing of it is kept as a prefix under either.
  EXPECT_EQ(engine_->NewSequence(ids)->length(), 0);
  EXPECT_EQ(engine_->NewSequence(ids, weights_.get())->length(), 0);
  // However it is cut, and from disk, it is the same.
  for (int32_t id : tail.first(50)) Feed(fork.get(), {&id, 1}, weights_.get());
  const std::string bytes = fork->Save();
  EXPECT_EQ(engine_->Restore(bytes).status().code(), absl::StatusCode::kFailedPrecondition);
  auto restored = engine_->Restore(bytes, weights_.get());
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ((*restored)->origins(), mixed->origins());
  const StepItem again = Feed(restored->get(), tail.subspan(50), weights_.get());
  EXPECT_EQ(again.raw_logprob, once.raw_logprob);
  EXPECT_EQ(again.sampled_id, once.sampled_id);
  // A whole state of the new weights is another.
  const auto pure = engine_->NewSequence();
  EXPECT_NE(Feed(pure.get(), ids, weights_.get()).raw_logprob, once.raw_logprob);
  EXPECT_GT(engine_->NewSequence(ids, weights_.get())->length(), 0);
  EXPECT_EQ(engine_->NewSequence(ids)->length(), 0);
}

TEST_F(WeightsTest, WhatDoesNotFitIsRefusedWithOneLine) {
  namespace fs = std::filesystem;
  auto refused = [&](const ModelDirectory& directory, absl::StatusCode code, const char* text) {
    const absl::Status status = engine_->LoadWeights(directory.path()).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    EXPECT_EQ(status.message().find('\n'), std::string::npos);
  };
  const std::string tiny = std::string(REPRISE_SOURCE_DIR) + "/examples/tiny-v4";
  ModelDirectory cut(tiny);
  fs::resize_file(cut.file("model.safetensors"), fs::file_size(cut.file("model.safetensors")) - 8);
  refused(cut, absl::StatusCode::kDataLoss, "model.safetensors");
  ModelDirectory stranger(std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model/clamp");
  refused(stranger, absl::StatusCode::kFailedPrecondition, "config.json");
  ModelDirectory words(tiny);
  nlohmann::json tokenizer = nlohmann::json::parse(std::ifstream(words.file("tokenizer.json")));
  auto& merges = tokenizer["model"]["merges"];
  std::swap(merges[0], merges[1]);
  std::ofstream(words.file("tokenizer.json")) << tokenizer;
  refused(words, absl::StatusCode::kFailedPrecondition, "tokenizer.json");
  auto other_engine = Engine::Load(tiny, {.threads = 1});
  ASSERT_TRUE(other_engine.ok());
  const auto sequence = (*other_engine)->NewSequence();
  StepItem item;
  item.sequence = sequence.get();
  const std::vector<int32_t> ids = {1, 2};
  item.tokens = ids;
  item.weights = weights_.get();
  EXPECT_EQ((*other_engine)->Step(absl::MakeSpan(&item, 1)).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace reprise::engine
