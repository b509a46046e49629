// Prefixes that outlive their engine: the tokens that follow are the same bit for bit whatever was
// kept, and nothing that happens to the files is more than lost time.
#include <filesystem>
#include <fstream>
#include <random>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/config.h"
#include "engine/engine.h"
#include "engine/kv_state.h"
#include "tests/unit/engine/model_files.h"

namespace reprise::engine {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr int64_t kPage = 128;

std::vector<int32_t> Tokens(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 272);
  return ids;
}

struct Drawn {
  int64_t reused = 0;  // of the prompt
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
};

class PrefixDiskTest : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Engine> Load(const PrefixDiskOptions& disk, bool speculate = false) {
    EngineOptions options;
    options.threads = 2;
    options.prefix_cache_bytes = 0;
    options.prefix_disk = disk;
    options.speculate = speculate;
    auto engine = Engine::Load(model_.path(), options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? *std::move(engine) : nullptr;
  }
  PrefixDiskOptions Disk(PrefixWindows windows, int64_t period = 3) const {
    return {.directory = scratch_.path() + "/kv", .windows = windows, .period = period};
  }
  // Reads the prompt two pages at a time and samples after it.
  static Drawn Read(Engine* engine, const std::vector<int32_t>& prompt, int count = 40) {
    const auto sequence = engine->NewSequence(prompt);
    Drawn drawn;
    drawn.reused = sequence->length();
    SamplingParams sampling;
    sampling.seed = 7;
    int32_t last = 0;
    absl::Span<const int32_t> left = absl::MakeConstSpan(prompt);
    left.remove_prefix(static_cast<size_t>(drawn.reused));
    while (static_cast<int>(drawn.ids.size()) < count) {
      StepItem item;
      item.sequence = sequence.get();
      item.tokens = left.subspan(0, 2 * kPage);
      left.remove_prefix(item.tokens.size());
      if (left.empty()) item.sampling = &sampling;
      const absl::Status status = engine->Step(absl::MakeSpan(&item, 1));
      EXPECT_TRUE(status.ok()) << status;
      if (item.sampling == nullptr) continue;
      drawn.ids.push_back(last = item.sampled_id);
      drawn.logprobs.push_back(item.logprob);
      left = {&last, 1};
    }
    return drawn;
  }
  // What is taken of `entries` tokens whose last block is at `state`: all of it where computing the
  // windows again leaves less to do.
  int64_t Reused(int64_t entries, int64_t state) const {
    const auto config = LoadConfig(model_.path());
    EXPECT_TRUE(config.ok());
    const int64_t again = config->num_layers * (config->window - 1) + 128 + kRewindTokens;
    return entries - again > state ? entries : state;
  }
  void ExpectSame(const Drawn& a, const Drawn& b) {
    EXPECT_EQ(a.ids, b.ids);
    EXPECT_EQ(a.logprobs, b.logprobs);
  }
  std::vector<fs::path> Files() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(scratch_.path() + "/kv")) {
      if (entry.path().extension() == ".kv") files.push_back(entry.path());
    }
    return files;
  }

  ModelDirectory model_{std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model/" + GetParam()};
  base::ScratchDir scratch_{"prefix"};
  const std::vector<int32_t> prompt_ = Tokens(1000, 1);
  // Parts from the prompt in its sixth page.
  const std::vector<int32_t> branch_ = [this] {
    std::vector<int32_t> ids(prompt_.begin(), prompt_.begin() + 700);
    for (const int32_t id : Tokens(150, 2)) ids.push_back(id);
    return ids;
  }();
};

TEST_P(PrefixDiskTest, WhatFollowsIsTheSameWhateverIsKept) {
  const auto plain = Load({});
  const Drawn expected = Read(plain.get(), prompt_), other = Read(plain.get(), branch_);
  EXPECT_NE(expected.ids, other.ids);
  struct Case {
    PrefixWindows windows;
    int64_t prompt, branch;  // tokens up to the last block that was kept of each
  };
  // Steps of two pages and the end of the prompt leave 256, 512, 768 and 896 tokens; periods of
  // three pages keep the first and the third of these. Entries are known page by page.
  for (const Case& c :
       {Case{PrefixWindows::kFull, 896, 512}, Case{PrefixWindows::kPeriodic, 768, 256},
        Case{PrefixWindows::kZero, 0, 0}}) {
    SCOPED_TRACE(static_cast<int>(c.windows));
    fs::remove_all(scratch_.path() + "/kv");
    {
      const auto first = Load(Disk(c.windows));
      const Drawn drawn = Read(first.get(), prompt_);
      EXPECT_EQ(drawn.reused, 0);
      ExpectSame(drawn, expected);
    }
    const auto second = Load(Disk(c.windows));
    const Drawn again = Read(second.get(), prompt_);
    EXPECT_EQ(again.reused, Reused(896, c.prompt));
    ExpectSame(again, expected);
    EXPECT_GT(second->stats().prefix_disk_tokens, 0);
    EXPECT_LT(second->stats().computed_tokens, 1000 + 40 - 200);
    const Drawn branched = Read(second.get(), branch_);
    EXPECT_EQ(branched.reused, Reused(640, c.branch));
    ExpectSame(branched, other);
  }
}

TEST_P(PrefixDiskTest, DamagedFilesAreRemovedAndComputedAgain) {
  const Drawn expected = Read(Load({}).get(), prompt_);
  for (const PrefixWindows windows : {PrefixWindows::kFull, PrefixWindows::kZero}) {
    Read(Load(Disk(windows)).get(), prompt_);
    size_t i = 0;
    for (const fs::path& path : Files()) {
      std::string bytes = *base::ReadFile(path.string());
      if (i % 3 == 0) bytes.resize(bytes.size() / 2);
      if (i % 3 == 1) bytes[bytes.size() - 5] = static_cast<char>(bytes[bytes.size() - 5] ^ 1);
      if (i++ % 3 == 2) bytes[50] = static_cast<char>(bytes[50] ^ 1);
      std::ofstream(path, std::ios::binary) << bytes;
    }
    EXPECT_GE(i, 6u);
    std::ofstream(Files()[0].string() + ".partial") << "half";
    const auto engine = Load(Disk(windows));
    EXPECT_FALSE(fs::exists(Files()[0].string() + ".partial"));
    ExpectSame(Read(engine.get(), prompt_), expected);
    fs::remove_all(scratch_.path() + "/kv");
  }
}

TEST_P(PrefixDiskTest, KeepsItsBoundAndWhatWasUsedLast) {
  PrefixDiskOptions disk = Disk(PrefixWindows::kFull);
  int64_t each = 0;
  {
    const auto engine = Load(disk);
    Read(engine.get(), prompt_, 1);
  }
  {
    const auto engine = Load(disk);
    each = engine->stats().prefix_disk_bytes;
    EXPECT_GT(each, 0);
  }
  disk.bytes_max = each * 2 + each / 2;
  for (uint32_t seed = 10; seed < 15; ++seed) {
    const auto engine = Load(disk);
    Read(engine.get(), Tokens(1000, seed), 1);
    EXPECT_GT(Read(engine.get(), prompt_, 1).reused, 0) << seed;
  }
  const auto engine = Load(disk);
  EXPECT_LE(engine->stats().prefix_disk_bytes, disk.bytes_max);
  int64_t there = 0;
  for (const fs::path& path : Files()) there += static_cast<int64_t>(fs::file_size(path));
  EXPECT_EQ(there, engine->stats().prefix_disk_bytes);
  EXPECT_EQ(Read(engine.get(), Tokens(1000, 10), 1).reused, 0);
}

TEST_P(PrefixDiskTest, AFailingDiskCostsTimeOnly) {
  const Drawn expected = Read(Load({}).get(), prompt_);
  const auto engine = Load(Disk(PrefixWindows::kFull));
  fs::remove_all(scratch_.path() + "/kv");
  ExpectSame(Read(engine.get(), prompt_), expected);
  ExpectSame(Read(engine.get(), prompt_), expected);
}

TEST_P(PrefixDiskTest, OneEngineADirectory) {
  const auto engine = Load(Disk(PrefixWindows::kFull));
  EngineOptions options;
  options.prefix_disk = Disk(PrefixWindows::kFull);
  const absl::Status second = Engine::Load(model_.path(), options).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.message()), HasSubstr("another engine"));
  options.prefix_disk = {.directory = scratch_.path() + "/other", .period = 0};
  EXPECT_EQ(Engine::Load(model_.path(), options).status().code(),
            absl::StatusCode::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Models, PrefixDiskTest,
                         testing::Values("mixed", "pro-order", "quantised/deep"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = std::isalnum(c) != 0 ? c : '_';
                           return name;
                         });

// The MTP block's guesses come back too.
TEST(PrefixDiskSpeculationTest, GoesOnWithTheGuessesThatItHad) {
  const ModelDirectory model(std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model/quantised/csa");
  const base::ScratchDir scratch("prefix");
  EngineOptions options;
  options.threads = 2;
  options.prefix_cache_bytes = 0;
  options.speculate = true;
  options.prefix_disk = {.directory = scratch.path() + "/kv", .windows = PrefixWindows::kFull};
  const std::vector<int32_t> prompt = Tokens(600, 3);
  std::vector<std::vector<int32_t>> drawn;
  std::vector<int64_t> right;
  for (int run = 0; run < 2; ++run) {
    auto engine = Engine::Load(model.path(), options);
    ASSERT_TRUE(engine.ok()) << engine.status();
    const auto sequence = (*engine)->NewSequence(prompt);
    EXPECT_EQ(sequence->length(), run == 0 ? 0 : 512);
    const SamplingParams sampling;
    std::vector<int32_t> ids;
    int32_t last = 0;
    absl::Span<const int32_t> feed = absl::MakeConstSpan(prompt);
    feed.remove_prefix(static_cast<size_t>(sequence->length()));
    while (ids.size() < 60) {
      StepItem item;
      item.sequence = sequence.get();
      item.tokens = feed;
      item.sampling = &sampling;
      item.max_samples = 2;
      ASSERT_TRUE((*engine)->Step(absl::MakeSpan(&item, 1)).ok());
      for (const SampledToken& token : item.sampled) ids.push_back(last = token.id);
      feed = {&last, 1};
    }
    drawn.push_back(ids);
    right.push_back((*engine)->stats().right_guesses);
  }
  EXPECT_EQ(drawn[0], drawn[1]);
  EXPECT_EQ(right[0], right[1]);
  options.prefix_disk.windows = PrefixWindows::kZero;
  EXPECT_EQ(Engine::Load(model.path(), options).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace reprise::engine
