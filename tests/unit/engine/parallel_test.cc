// Goal: a model that several processes run gives the bits of one process, whatever is done with its
// sequences, and a rank's death is an error that names it and leaves nothing behind. Method: the
// golden models (all layer kinds, float and reference numerics) on 1, 2, 3 and 4 real processes,
// more than some of them have head groups.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "engine/config.h"
#include "engine/engine.h"
#include "engine/parallel/parallel_engine.h"
#include "tests/rank_processes.h"
#include "tests/unit/engine/model_files.h"

namespace reprise::engine {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const char kTiny[] = REPRISE_SOURCE_DIR "/examples/tiny-v4";

ParallelOptions Ranks(int ranks) {
  ParallelOptions parallel;
  parallel.ranks = ranks;
  parallel.helper = REPRISE_BIN_DIR "/reprise-rank";
  return parallel;
}

std::unique_ptr<Engine> Load(const std::string& directory, int ranks,
                             Numerics numerics = Numerics::kAuto) {
  auto engine = LoadParallel(directory, {.threads = 1, .numerics = numerics}, Ranks(ranks));
  EXPECT_TRUE(engine.ok()) << engine.status();
  return engine.ok() ? *std::move(engine) : nullptr;
}

std::vector<int32_t> RandomTokens(const Engine& engine, size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens)
    token = static_cast<int32_t>(random() % static_cast<uint32_t>(engine.vocab_size()));
  return tokens;
}

class ParallelTest : public testing::TestWithParam<std::string> {
 protected:
  ParallelTest() {
    const std::string golden =
        std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model/" + GetParam();
    directory_ =
        std::make_unique<ModelDirectory>(fs::exists(golden + "/config.json") ? golden : kTiny);
  }
  std::unique_ptr<ModelDirectory> directory_;
};

std::vector<std::string> ModelNames() {
  std::vector<std::string> names = {"tiny-v4"};
  for (const auto& entry :
       fs::directory_iterator(std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model")) {
    if (fs::exists(entry.path() / "config.json")) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

TEST_P(ParallelTest, LogitsAreThoseOfOneProcess) {
  for (const Numerics numerics : {Numerics::kFloat, Numerics::kReference}) {
    const auto one = Engine::Load(directory_->path(), {.threads = 1, .numerics = numerics});
    // Reference numerics refuse some dimensions.
    if (!one.ok() && numerics == Numerics::kReference) continue;
    ASSERT_TRUE(one.ok()) << one.status();
    const int64_t long_enough = std::min<int64_t>((*one)->max_context(), 300);
    const auto tokens = RandomTokens(**one, static_cast<size_t>(long_enough), 5);
    const auto expected = (*one)->Logits(tokens);
    ASSERT_TRUE(expected.ok()) << expected.status();
    for (int ranks : {2, 3, 4}) {
      const auto engine = Load(directory_->path(), ranks, numerics);
      ASSERT_NE(engine, nullptr);
      EXPECT_EQ(engine->digest(), (*one)->digest());
      const auto logits = engine->Logits(tokens);
      ASSERT_TRUE(logits.ok()) << logits.status();
      EXPECT_EQ(std::memcmp(logits->data(), expected->data(), expected->size() * sizeof(float)), 0)
          << ranks << " ranks";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ParallelTest, testing::ValuesIn(ModelNames()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// All that can be done with sequences, in a random order: what it samples and what it keeps.
std::string RandomWork(Engine* engine, uint32_t seed) {
  std::mt19937 random(seed);
  std::string story;
  std::vector<std::unique_ptr<Sequence>> sequences;
  SamplingParams sampling;
  sampling.seed = 3;
  const auto any = [&]() -> std::unique_ptr<Sequence>& {
    return sequences[random() % sequences.size()];
  };
  auto other = engine->LoadWeights(kTiny);
  EXPECT_TRUE(other.ok()) << other.status();
  for (int round = 0; round < 40; ++round) {
    const uint32_t choice = random() % 12;
    if (sequences.empty() || choice == 0) {
      // A prompt that the prefix cache may know.
      const auto prompt = RandomTokens(*engine, 140, 1 + random() % 2);
      auto made = engine->NewSequence(prompt);
      story += "new " + std::to_string(made->length()) + "\n";
      StepItem item;
      item.sequence = made.get();
      item.tokens = absl::MakeConstSpan(prompt).subspan(static_cast<size_t>(made->length()));
      item.sampling = &sampling;
      EXPECT_TRUE(engine->Step(absl::MakeSpan(&item, 1)).ok());
      story += std::to_string(item.sampled_id) + "\n";
      sequences.push_back(std::move(made));
    } else if (choice == 1) {
      sequences.push_back(any()->Fork());
    } else if (choice == 2) {
      Sequence* sequence = any().get();
      story += sequence->Rewind(sequence->length() - 1).ok() ? "rewound\n" : "not rewound\n";
    } else if (choice == 3) {
      auto restored = engine->Restore(any()->Save());
      if (restored.ok()) sequences.push_back(*std::move(restored));
      story += restored.ok() ? "restored\n" : "not restored\n";
    } else if (choice == 4 && sequences.size() > 2) {
      sequences.erase(sequences.begin() + static_cast<ptrdiff_t>(random() % sequences.size()));
    } else {
      std::vector<StepItem> items(sequences.size());
      const auto tokens = RandomTokens(*engine, sequences.size() * 3, random());
      for (size_t i = 0; i < items.size(); ++i) {
        items[i].sequence = sequences[i].get();
        items[i].tokens = absl::MakeConstSpan(tokens).subspan(i * 3, 1 + random() % 3);
        if (random() % 4 != 0) items[i].sampling = &sampling;
        if (random() % 3 == 0) items[i].weights = other->get();
        items[i].want_routes = random() % 2 == 0;
      }
      const absl::Status stepped = engine->Step(absl::MakeSpan(items));
      EXPECT_TRUE(stepped.ok()) << stepped;
      for (const StepItem& item : items) {
        story += std::to_string(item.sampled_id) + " " + std::to_string(item.logprob) + " ";
        for (uint16_t expert : item.routes) story += std::to_string(expert) + ",";
      }
      story += "\n";
    }
  }
  for (const auto& sequence : sequences) story += sequence->Save();
  return story;
}

TEST(ParallelEngineTest, SequencesDoWhatTheyDoOnOneProcess) {
  bool restored = false;
  for (uint32_t seed = 0; seed < 4; ++seed) {
    const auto one = Engine::Load(kTiny, {.threads = 1});
    ASSERT_TRUE(one.ok()) << one.status();
    const std::string expected = RandomWork(one->get(), seed);
    restored = restored || expected.find("\nrestored") != std::string::npos;
    for (int ranks : {2, 4}) {
      const auto engine = Load(kTiny, ranks);
      ASSERT_NE(engine, nullptr);
      EXPECT_TRUE(RandomWork(engine.get(), seed) == expected) << ranks << " ranks, seed " << seed;
    }
  }
  EXPECT_TRUE(restored);
}

TEST(ParallelEngineTest, ADeadRankIsNamedAndNothingIsLeft) {
  auto engine = Load(kTiny, 3);
  ASSERT_NE(engine, nullptr);
  const auto tokens = RandomTokens(*engine, 20, 1);
  ASSERT_TRUE(engine->Logits(tokens).ok());
  const std::vector<pid_t> ranks = RanksOf(::getpid());
  ASSERT_EQ(ranks.size(), 2u);
  ASSERT_EQ(::kill(ranks[1], SIGKILL), 0);
  const auto lost = engine->Logits(tokens);
  ASSERT_EQ(lost.status().code(), absl::StatusCode::kUnavailable) << lost.status();
  EXPECT_THAT(lost.status().message(), HasSubstr("rank "));
  // It stays lost, and says so at once.
  auto sequence = engine->NewSequence();
  StepItem item;
  item.sequence = sequence.get();
  item.tokens = tokens;
  EXPECT_EQ(engine->Step(absl::MakeSpan(&item, 1)).code(), absl::StatusCode::kUnavailable);
  sequence.reset();
  engine.reset();
  EXPECT_THAT(RanksOf(::getpid()), testing::IsEmpty());
  // And another group works.
  engine = Load(kTiny, 3);
  ASSERT_NE(engine, nullptr);
  EXPECT_TRUE(engine->Logits(tokens).ok());
}

TEST(ParallelEngineTest, WhatCannotBeIsRefused) {
  EXPECT_EQ(LoadParallel(kTiny, {}, Ranks(0)).status().message(), "0 ranks; possible: 1 to 64");
  base::ScratchDir disk;
  EXPECT_THAT(
      LoadParallel(kTiny, {.prefix_disk = {.directory = disk.path()}}, Ranks(2)).status().message(),
      HasSubstr("a model that 2 ranks run has no prefix cache on disk yet"));
  EXPECT_EQ(LoadParallel("/none", {}, Ranks(2)).status().code(), absl::StatusCode::kNotFound);
  ParallelOptions missing = Ranks(2);
  missing.helper = "/none/reprise-rank";
  EXPECT_THAT(LoadParallel(kTiny, {}, missing).status().message(),
              HasSubstr("cannot start /none/reprise-rank"));
  ParallelOptions nobody;
  nobody.others = {"127.0.0.1:1"};
  const absl::Status refused = LoadParallel(kTiny, {}, nobody).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(refused.message(), HasSubstr("rank 1 (127.0.0.1:1): no rank answers"));
  auto engine = Load(kTiny, 2);
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(engine->LoadWeights("/none").status().code(), absl::StatusCode::kNotFound);
  // Nothing of that stands in the way.
  const auto tokens = RandomTokens(*engine, 20, 1);
  EXPECT_EQ(engine->Logits({}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(engine->Logits(tokens).ok());
  auto other = engine->LoadWeights(kTiny);
  EXPECT_TRUE(other.ok()) << other.status();
}

}  // namespace
}  // namespace reprise::engine
