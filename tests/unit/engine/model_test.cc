// Logits against goldens made with torch (tests/golden/model), and the promises of engine.h: the
// same bits alone, in a batch, for any cut of a prompt, on any number of threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>

#include <gtest/gtest.h>

#include "engine/engine.h"
#include "engine/safetensors.h"
#include "tests/unit/engine/model_files.h"

namespace reprise::engine {
namespace {

namespace fs = std::filesystem;

constexpr double kLogitTolerance = 1e-4;  // of the range of the logits

struct Golden {
  std::vector<int32_t> ids;
  std::vector<int64_t> positions;
  std::vector<float> logits;  // [positions, V]
};

template <typename T>
std::vector<T> Read(const TensorView& view) {
  std::vector<T> out(view.bytes / sizeof(T));
  std::memcpy(out.data(), view.data, view.bytes);
  return out;
}

std::vector<Golden> ReadGoldens(const std::string& path) {
  auto file = SafetensorsFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  std::vector<Golden> goldens;
  if (!file.ok()) return goldens;
  const auto& tensors = (*file)->tensors();
  for (int i = 0; tensors.count("case" + std::to_string(i) + ".ids") != 0; ++i) {
    const std::string name = "case" + std::to_string(i);
    Golden golden;
    for (int64_t id : Read<int64_t>(tensors.at(name + ".ids")))
      golden.ids.push_back(static_cast<int32_t>(id));
    golden.positions = Read<int64_t>(tensors.at(name + ".positions"));
    golden.logits = Read<float>(tensors.at(name + ".logits"));
    goldens.push_back(std::move(golden));
  }
  return goldens;
}

// Directories below tests/golden/model; the one of tiny-v4 has only its golden.
std::vector<std::string> GoldenNames() {
  std::vector<std::string> names;
  for (const auto& entry :
       fs::directory_iterator(std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model")) {
    if (fs::exists(entry.path() / "golden.safetensors")) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class GoldenTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string golden_dir =
        std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model/" + GetParam();
    goldens_ = ReadGoldens(golden_dir + "/golden.safetensors");
    ASSERT_FALSE(goldens_.empty());
    std::string model_dir = golden_dir;
    if (!fs::exists(golden_dir + "/config.json"))
      model_dir = std::string(REPRISE_SOURCE_DIR) + "/examples/" + GetParam();
    directory_ = std::make_unique<ModelDirectory>(model_dir);
  }
  std::unique_ptr<Engine> Load(int threads) {
    EngineOptions options;
    options.threads = threads;
    auto engine = Engine::Load(directory_->path(), options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? std::move(*engine) : nullptr;
  }

  std::vector<Golden> goldens_;
  std::unique_ptr<ModelDirectory> directory_;
};

TEST_P(GoldenTest, LogitsAgreeWithTorch) {
  const auto engine = Load(2);
  ASSERT_NE(engine, nullptr);
  const size_t vocab = static_cast<size_t>(engine->vocab_size());
  double worst = 0;
  for (const Golden& golden : goldens_) {
    const auto logits = engine->Logits(golden.ids);
    ASSERT_TRUE(logits.ok()) << logits.status();
    ASSERT_EQ(golden.logits.size(), golden.positions.size() * vocab);
    const auto [low, high] = std::minmax_element(golden.logits.begin(), golden.logits.end());
    const double range = static_cast<double>(*high) - *low;
    for (size_t i = 0; i < golden.positions.size(); ++i) {
      for (size_t v = 0; v < vocab; ++v) {
        const float ours = (*logits)[static_cast<size_t>(golden.positions[i]) * vocab + v];
        const double difference =
            std::abs(static_cast<double>(ours) - golden.logits[i * vocab + v]) / range;
        ASSERT_LE(difference, kLogitTolerance) << "length " << golden.ids.size() << " position "
                                               << golden.positions[i] << " token " << v;
        worst = std::max(worst, difference);
      }
    }
  }
  RecordProperty("largest_difference_of_range", std::to_string(worst));
  printf("  %s: largest difference %.2e of the range\n", GetParam().c_str(), worst);
}

// Sampled tokens and routes of feeding the ids in random cuts among other sequences, greedy after
// every cut, must be those of feeding all before the cut at once.
TEST_P(GoldenTest, CutsBatchesAndThreadsDoNotChangeABit) {
  const Golden& longest = *std::max_element(
      goldens_.begin(), goldens_.end(),
      [](const Golden& a, const Golden& b) { return a.ids.size() < b.ids.size(); });
  const auto engine = Load(1), threaded = Load(3);
  ASSERT_NE(engine, nullptr);
  ASSERT_NE(threaded, nullptr);
  const size_t vocab = static_cast<size_t>(engine->vocab_size());
  const auto whole = engine->Logits(longest.ids);
  ASSERT_TRUE(whole.ok());
  const auto whole_threaded = threaded->Logits(longest.ids);
  ASSERT_EQ(*whole, *whole_threaded);

  std::mt19937 random(7);
  SamplingParams sampling;
  for (Engine* e : {engine.get(), threaded.get()}) {
    // Several sequences with the same tokens, each cut its own way, in one batch.
    constexpr size_t kSequences = 5;
    std::vector<std::unique_ptr<Sequence>> sequences;
    std::vector<size_t> fed(kSequences, 0);
    for (size_t s = 0; s < kSequences; ++s) sequences.push_back(e->NewSequence());
    const std::vector<size_t> cuts = {1, 2, 3, 4, 5, 31, 127, 128, 129, 130, 300};
    while (true) {
      std::vector<StepItem> items;
      std::vector<size_t> which;
      for (size_t s = 0; s < kSequences; ++s) {
        const size_t left = longest.ids.size() - fed[s];
        if (left == 0) continue;
        const size_t cut = s == 0 ? 1 : std::min(left, cuts[random() % cuts.size()]);
        StepItem item;
        item.sequence = sequences[s].get();
        item.tokens = absl::MakeConstSpan(longest.ids).subspan(fed[s], cut);
        item.sampling = &sampling;
        items.push_back(item);
        which.push_back(s);
        fed[s] += cut;
      }
      if (items.empty()) break;
      ASSERT_TRUE(e->Step(absl::MakeSpan(items)).ok());
      for (size_t i = 0; i < items.size(); ++i) {
        const size_t last = fed[which[i]] - 1;
        const absl::Span<const float> row(whole->data() + last * vocab, vocab);
        const float max = *std::max_element(row.begin(), row.end());
        double sum = 0;
        for (float logit : row) sum += std::exp(static_cast<double>(logit) - max);
        const auto expected = static_cast<float>(row[static_cast<size_t>(items[i].sampled_id)] -
                                                 static_cast<double>(max) - std::log(sum));
        ASSERT_EQ(items[i].raw_logprob, expected)
            << "sequence " << which[i] << " after " << last + 1 << " tokens";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenTest, testing::ValuesIn(GoldenNames()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace_if(
                               name.begin(), name.end(),
                               [](char c) { return !isalnum(static_cast<unsigned char>(c)); }, '_');
                           return name;
                         });

}  // namespace
}  // namespace reprise::engine
