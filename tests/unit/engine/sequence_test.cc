// KV state: shared until written, counted to the byte, saved and restored, taken back, found again
// by prefix; and the promise of engine.h under random schedules of all of that.
#include <algorithm>
#include <cstdlib>
#include <random>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine.h"
#include "engine/kv_state.h"
#include "engine/model_info.h"
#include "engine/sampler.h"
#include "tests/unit/engine/model_files.h"

namespace reprise::engine {
namespace {

using testing::HasSubstr;

constexpr int64_t kPage = 128;

std::vector<int32_t> Tokens(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 272);
  return ids;
}

// A model in float and one, with an MTP block, in reference numerics.
class SequenceTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    directory_ = std::make_unique<ModelDirectory>(std::string(REPRISE_SOURCE_DIR) +
                                                  "/tests/golden/model/" + GetParam());
    options_.threads = 2;
    options_.speculate = GetParam() == "quantised/csa";
    engine_ = Load(options_);
  }
  std::unique_ptr<Engine> Load(const EngineOptions& options) {
    auto engine = Engine::Load(directory_->path(), options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? *std::move(engine) : nullptr;
  }
  // Feeds in one step; the sample that follows.
  static StepItem Feed(Engine* engine, Sequence* sequence, absl::Span<const int32_t> tokens,
                       const SamplingParams& sampling) {
    StepItem item;
    item.sequence = sequence;
    item.tokens = tokens;
    item.sampling = &sampling;
    EXPECT_TRUE(engine->Step(absl::MakeSpan(&item, 1)).ok());
    return item;
  }
  // Draws `count` tokens after those that are fed.
  static std::vector<int32_t> Continue(Engine* engine, Sequence* sequence, int32_t first,
                                       const SamplingParams& sampling, size_t count) {
    std::vector<int32_t> out = {first};
    while (out.size() < count)
      out.push_back(Feed(engine, sequence, {&out.back(), 1}, sampling).sampled_id);
    return out;
  }

  std::unique_ptr<ModelDirectory> directory_;
  EngineOptions options_;
  std::unique_ptr<Engine> engine_;
};

TEST_P(SequenceTest, MemoryIsCountedToTheByte) {
  ASSERT_NE(engine_, nullptr);
  const auto info = ReadModelInfo(directory_->path());
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->kv_page_tokens, kPage);
  options_.prefix_cache_bytes = 0;
  options_.speculate = false;
  const auto engine = Load(options_);
  const std::vector<int32_t> ids = Tokens(300, 1);
  int64_t sum = 0;
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (const size_t length : {1, 127, 128, 129, 256, 300}) {
    sequences.push_back(engine->NewSequence());
    Feed(engine.get(), sequences.back().get(), absl::MakeConstSpan(ids).subspan(0, length), {});
    EXPECT_EQ(sequences.back()->memory_bytes(), info->KvBytes(static_cast<int64_t>(length)));
    sum += info->KvBytes(static_cast<int64_t>(length));
    EXPECT_EQ(engine->stats().kv_bytes, sum);
  }
  sequences.clear();
  EXPECT_EQ(engine->stats().kv_bytes, 0);
}

TEST_P(SequenceTest, AForkSharesUntilOneWrites) {
  ASSERT_NE(engine_, nullptr);
  const std::vector<int32_t> ids = Tokens(300, 2);
  const SamplingParams sampling;
  const auto first = engine_->NewSequence();
  const int32_t next = Feed(engine_.get(), first.get(), ids, sampling).sampled_id;
  const int64_t before = engine_->stats().kv_bytes;
  std::vector<std::unique_ptr<Sequence>> forks;
  for (int i = 0; i < 5; ++i) forks.push_back(first->Fork());
  EXPECT_EQ(engine_->stats().kv_bytes, before);
  const std::vector<int32_t> expected = Continue(engine_.get(), first.get(), next, sampling, 150);
  // The fork did not see what the other wrote, and both go the same way.
  EXPECT_EQ(forks[0]->length(), 300);
  EXPECT_EQ(Continue(engine_.get(), forks[0].get(), next, sampling, 150), expected);
  const auto info = ReadModelInfo(directory_->path());
  ASSERT_TRUE(info.ok());
  forks.resize(1);
  // Two of 449 tokens that share the two pages which were full at the fork.
  const int64_t alone = first->memory_bytes();
  EXPECT_EQ(engine_->stats().kv_bytes - engine_->stats().prefix_cache_bytes,
            2 * alone - 2 * info->kv_page_bytes - 2 * info->kv_page_bytes);
}

TEST_P(SequenceTest, AGroupReadsItsPromptOnce) {
  ASSERT_NE(engine_, nullptr);
  const std::vector<int32_t> ids = Tokens(333, 3);
  constexpr size_t kGroup = 8;
  std::vector<SamplingParams> sampling(kGroup);
  std::vector<std::vector<int32_t>> expected;
  for (size_t i = 0; i < kGroup; ++i) {
    sampling[i].seed = i;
    const auto engine = Load(options_);
    const auto alone = engine->NewSequence();
    const int32_t first = Feed(engine.get(), alone.get(), ids, sampling[i]).sampled_id;
    expected.push_back(Continue(engine.get(), alone.get(), first, sampling[i], 20));
  }
  EXPECT_NE(expected[0], expected[1]);
  std::vector<std::unique_ptr<Sequence>> group;
  std::vector<std::vector<int32_t>> sampled(kGroup);
  for (size_t i = 0; i < kGroup; ++i) group.push_back(engine_->NewSequence());
  for (const auto& [from, count] : {std::pair<size_t, size_t>{0, 256}, {256, 77}}) {
    std::vector<StepItem> items(kGroup);
    for (size_t i = 0; i < kGroup; ++i) {
      items[i].sequence = group[i].get();
      items[i].tokens = absl::MakeConstSpan(ids).subspan(from, count);
      items[i].want_routes = i % 2 == 1;
      if (from > 0) items[i].sampling = &sampling[i];
    }
    ASSERT_TRUE(engine_->Step(absl::MakeSpan(items)).ok());
    EXPECT_TRUE(items[0].routes.empty());
    EXPECT_FALSE(items[1].routes.empty());
    EXPECT_EQ(items[1].routes, items[3].routes);
    for (size_t i = 0; i < kGroup && from > 0; ++i) sampled[i] = {items[i].sampled_id};
  }
  EXPECT_EQ(engine_->stats().fed_tokens, static_cast<int64_t>(kGroup * ids.size()));
  EXPECT_EQ(engine_->stats().computed_tokens, static_cast<int64_t>(ids.size()));
  for (size_t i = 0; i < kGroup; ++i) {
    EXPECT_EQ(Continue(engine_.get(), group[i].get(), sampled[i][0], sampling[i], 20), expected[i]);
  }
}

TEST_P(SequenceTest, APromptThatWasReadIsFoundAgain) {
  ASSERT_NE(engine_, nullptr);
  const std::vector<int32_t> ids = Tokens(400, 4);
  const SamplingParams sampling;
  const auto first = engine_->NewSequence(ids);
  EXPECT_EQ(first->length(), 0);
  const int32_t expected = Feed(engine_.get(), first.get(), ids, sampling).sampled_id;
  const auto second = engine_->NewSequence(ids);
  EXPECT_EQ(second->length(), 3 * kPage);
  EXPECT_EQ(engine_->stats().reused_tokens, 3 * kPage);
  EXPECT_TRUE(std::equal(second->tokens().begin(), second->tokens().end(), ids.begin()));
  EXPECT_EQ(Feed(engine_.get(), second.get(),
                 absl::MakeConstSpan(ids).subspan(static_cast<size_t>(second->length())), sampling)
                .sampled_id,
            expected);
  // Another token in the third page: the state at the end of the pass before it.
  std::vector<int32_t> other = ids;
  other[300] = (other[300] + 1) % 272;
  EXPECT_EQ(engine_->NewSequence(other)->length(), 2 * kPage);
  // Never all of the tokens.
  EXPECT_EQ(engine_->NewSequence(absl::MakeConstSpan(ids).subspan(0, 3 * kPage))->length(),
            2 * kPage);

  options_.prefix_cache_bytes = 0;
  const auto without = Load(options_);
  Feed(without.get(), without->NewSequence().get(), ids, sampling);
  EXPECT_EQ(without->NewSequence(ids)->length(), 0);
}

TEST_P(SequenceTest, TheCacheKeepsItsBound) {
  const auto info = ReadModelInfo(directory_->path());
  ASSERT_TRUE(info.ok());
  options_.speculate = false;
  options_.prefix_cache_bytes = 3 * info->KvBytes(kPage) + 1;
  const auto engine = Load(options_);
  std::vector<std::vector<int32_t>> prompts;
  for (uint32_t i = 0; i < 6; ++i) {
    prompts.push_back(Tokens(kPage + 1, 100 + i));
    Feed(engine.get(), engine->NewSequence().get(), prompts.back(), {});
    EXPECT_LE(engine->stats().prefix_cache_bytes, options_.prefix_cache_bytes);
    engine->NewSequence(prompts[0]);  // stays the most recently used
  }
  EXPECT_EQ(engine->NewSequence(prompts[0])->length(), kPage);
  EXPECT_EQ(engine->NewSequence(prompts[1])->length(), 0);
  EXPECT_EQ(engine->NewSequence(prompts[5])->length(), kPage);
  EXPECT_EQ(engine->stats().kv_bytes, engine->stats().prefix_cache_bytes);
}

TEST_P(SequenceTest, ASavedSequenceGoesOnWithTheSameBits) {
  ASSERT_NE(engine_, nullptr);
  const std::vector<int32_t> ids = Tokens(270, 5);
  SamplingParams sampling;
  sampling.seed = 9;
  const auto sequence = engine_->NewSequence();
  const int32_t next = Feed(engine_.get(), sequence.get(), ids, sampling).sampled_id;
  const std::string bytes = sequence->Save();
  const std::vector<int32_t> expected = Continue(engine_.get(), sequence.get(), next, sampling, 30);
  const auto other_engine = Load(options_);
  auto restored = other_engine->Restore(bytes);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ((*restored)->length(), 270);
  EXPECT_EQ((*restored)->Save(), bytes);
  EXPECT_EQ(Continue(other_engine.get(), restored->get(), next, sampling, 30), expected);
}

TEST_P(SequenceTest, ADamagedSavedSequenceIsRefused) {
  ASSERT_NE(engine_, nullptr);
  const auto sequence = engine_->NewSequence();
  Feed(engine_.get(), sequence.get(), Tokens(140, 6), {});
  const std::string good = sequence->Save();
  ASSERT_TRUE(engine_->Restore(good).ok());
  for (size_t cut : {size_t{0}, size_t{7}, size_t{8}, size_t{40}, size_t{200}, good.size() - 1}) {
    const auto restored = engine_->Restore(std::string_view(good).substr(0, cut));
    EXPECT_EQ(restored.status().code(), absl::StatusCode::kDataLoss) << cut;
  }
  std::mt19937 random(1);
  for (int i = 0; i < 50; ++i) {
    std::string bad = good;
    bad[random() % bad.size()] ^= static_cast<char>(1 << random() % 8);
    EXPECT_EQ(engine_->Restore(bad).status().code(), absl::StatusCode::kDataLoss);
  }
  ModelDirectory other(std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model/clamp");
  auto stranger = Engine::Load(other.path());
  ASSERT_TRUE(stranger.ok());
  const auto restored = (*stranger)->Restore(good);
  EXPECT_EQ(restored.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(restored.status().message()), HasSubstr(engine_->digest()));
}

TEST_P(SequenceTest, WhatWasTakenBackLeavesNoTrace) {
  ASSERT_NE(engine_, nullptr);
  const std::vector<int32_t> ids = Tokens(400, 7), wrong = Tokens(8, 8);
  const SamplingParams sampling;
  const auto whole = engine_->Logits(ids);
  ASSERT_TRUE(whole.ok());
  const auto sequence = engine_->NewSequence();
  std::mt19937 random(3);
  for (size_t at = 0; at < ids.size();) {
    // Ends of blocks of 4 and of 128, of windows and of pages are crossed by what is taken back.
    const size_t count = std::min(ids.size() - at, size_t{1} + random() % 9);
    const StepItem item =
        Feed(engine_.get(), sequence.get(), absl::MakeConstSpan(ids).subspan(at, count), sampling);
    at += count;
    const size_t vocab = 272;
    const auto expected = Sample(absl::MakeConstSpan(*whole).subspan((at - 1) * vocab, vocab),
                                 sampling, absl::MakeConstSpan(ids).subspan(0, at));
    ASSERT_TRUE(expected.ok());
    ASSERT_EQ(item.sampled_id, expected->id) << at;
    ASSERT_EQ(item.raw_logprob, expected->raw_logprob) << at;
    const size_t extra = std::min(ids.size() - at, size_t{random() % 9});
    if (extra == 0) continue;
    Feed(engine_.get(), sequence.get(), absl::MakeConstSpan(wrong).subspan(0, extra), sampling);
    ASSERT_TRUE(sequence->Rewind(static_cast<int64_t>(at)).ok());
  }
  // The longest that it ever was counts.
  EXPECT_EQ(sequence->Rewind(400 - kRewindTokens - 1).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(sequence->Rewind(401).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(sequence->length(), 400);
  EXPECT_TRUE(sequence->Rewind(400 - kRewindTokens).ok());
}

// Two texts with a common beginning; sequences that read them are made, cut, batched, forked,
// saved, restored, taken back and dropped at random. Every sample must be what the logits of the
// whole text give.
TEST_P(SequenceTest, RandomSchedulesDoNotChangeABit) {
  ASSERT_NE(engine_, nullptr);
  std::vector<std::vector<int32_t>> texts = {Tokens(300, 21), Tokens(300, 22)};
  std::copy_n(texts[0].begin(), 150, texts[1].begin());
  std::vector<std::vector<float>> logits;
  for (const auto& text : texts) {
    auto whole = engine_->Logits(text);
    ASSERT_TRUE(whole.ok());
    logits.push_back(*std::move(whole));
  }
  constexpr size_t kVocab = 272;
  // REPRISE_SCHEDULES runs more of them.
  const char* const wanted = std::getenv("REPRISE_SCHEDULES");
  const int schedules = wanted != nullptr ? std::atoi(wanted) : 100;
  const size_t cuts[] = {1, 1, 1, 2, 3, 4, 5, 31, 127, 128, 129, 200};
  int64_t samples = 0;
  for (uint32_t schedule = 0; schedule < static_cast<uint32_t>(schedules); ++schedule) {
    std::mt19937 random(schedule);
    struct Reader {
      std::unique_ptr<Sequence> sequence;
      size_t text;
      SamplingParams sampling;
    };
    std::vector<Reader> readers;
    for (int step = 0; step < 12; ++step) {
      while (readers.size() < 2 || (readers.size() < 6 && random() % 3 == 0)) {
        const size_t text = random() % 2;
        const auto& ids = texts[text];
        readers.push_back(
            {random() % 2 == 0 ? engine_->NewSequence(ids) : engine_->NewSequence(), text, {}});
        readers.back().sampling.seed = random();
      }
      std::vector<StepItem> items;
      std::vector<size_t> who;
      for (size_t r = 0; r < readers.size(); ++r) {
        const auto& ids = texts[readers[r].text];
        const size_t at = static_cast<size_t>(readers[r].sequence->length());
        const size_t count = std::min(ids.size() - at, cuts[random() % std::size(cuts)]);
        if (count == 0 || random() % 5 == 0) continue;
        StepItem item;
        item.sequence = readers[r].sequence.get();
        item.tokens = absl::MakeConstSpan(ids).subspan(at, count);
        item.sampling = random() % 4 == 0 ? nullptr : &readers[r].sampling;
        item.max_samples = 1 + static_cast<int>(random() % 2);
        items.push_back(item);
        who.push_back(r);
      }
      const absl::Status stepped = engine_->Step(absl::MakeSpan(items));
      ASSERT_TRUE(stepped.ok()) << stepped;
      for (size_t i = 0; i < items.size(); ++i) {
        Reader& reader = readers[who[i]];
        const auto& ids = texts[reader.text];
        if (items[i].sampling == nullptr) continue;
        const size_t end =
            static_cast<size_t>(items[i].tokens.data() + items[i].tokens.size() - ids.data());
        const auto expected =
            Sample(absl::MakeConstSpan(logits[reader.text]).subspan((end - 1) * kVocab, kVocab),
                   reader.sampling, absl::MakeConstSpan(ids).subspan(0, end));
        ASSERT_TRUE(expected.ok());
        ASSERT_EQ(items[i].sampled_id, expected->id) << schedule << " after " << end;
        ASSERT_EQ(items[i].logprob, expected->logprob) << schedule << " after " << end;
        ++samples;
        // A second sample went its own way; the text is what counts.
        if (reader.sequence->length() > static_cast<int64_t>(end)) {
          ASSERT_TRUE(reader.sequence->Rewind(static_cast<int64_t>(end)).ok());
        }
      }
      const size_t r = random() % readers.size();
      Sequence* sequence = readers[r].sequence.get();
      switch (random() % 5) {
        case 0:
          readers.push_back({sequence->Fork(), readers[r].text, readers[r].sampling});
          break;
        case 1: {
          auto restored = engine_->Restore(sequence->Save());
          ASSERT_TRUE(restored.ok()) << restored.status();
          readers[r].sequence = *std::move(restored);
          break;
        }
        case 2:
          sequence->Rewind(sequence->length() - static_cast<int64_t>(random() % 9)).IgnoreError();
          break;
        case 3:
          readers.erase(readers.begin() + static_cast<ptrdiff_t>(r));
          break;
        default:
          break;
      }
    }
  }
  EXPECT_GT(samples, 10 * schedules);
}

INSTANTIATE_TEST_SUITE_P(Models, SequenceTest, testing::Values("mixed", "quantised/csa"),
                         [](const auto& info) {
                           return info.param == "mixed" ? "float" : "reference";
                         });

}  // namespace
}  // namespace reprise::engine
