// Quantised checkpoints in the numerics they were trained with, against the straight-line torch
// implementation of tests/golden/model/make_quantised.py.
#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine.h"
#include "engine/safetensors.h"
#include "tests/unit/engine/model_files.h"

namespace reprise::engine {
namespace {

constexpr double kCloseShare = 0.95;   // of the positions within kUlps
constexpr double kGreedyShare = 0.99;  // of the positions with the same best token
constexpr int kUlps = 2;               // of bfloat16 at the largest logit
// Times the golden's own distance from its float64 run: two orders of the same sums differ by as
// much.
constexpr double kNoise = 2;

std::string QuantisedModel(const std::string& name) {
  return std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model/quantised/" + name;
}

template <typename T>
std::vector<T> Read(const TensorView& view) {
  std::vector<T> out(view.bytes / sizeof(T));
  std::memcpy(out.data(), view.data, view.bytes);
  return out;
}

class NumericsTest : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Engine> Load(Numerics numerics, int threads = 2) {
    directory_ = std::make_unique<ModelDirectory>(QuantisedModel(GetParam()));
    EngineOptions options;
    options.threads = threads;
    options.numerics = numerics;
    auto engine = Engine::Load(directory_->path(), options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? *std::move(engine) : nullptr;
  }

  std::unique_ptr<ModelDirectory> directory_;
};

struct Agreement {
  int positions = 0, close = 0, greedy = 0;
  double distance = 0;  // mean over all logits
};

Agreement Compare(const std::vector<float>& ours, const std::vector<float>& golden,
                  const std::vector<int64_t>& positions, size_t vocab) {
  float largest = 0;
  for (float logit : golden) largest = std::max(largest, std::abs(logit));
  const float ulp = std::ldexp(1.0f, std::ilogb(largest) - 7);
  Agreement agreement;
  for (size_t i = 0; i * vocab < golden.size(); ++i) {
    const float* a = ours.data() + static_cast<size_t>(positions[i]) * vocab;
    const float* b = golden.data() + i * vocab;
    float difference = 0;
    for (size_t v = 0; v < vocab; ++v) {
      difference = std::max(difference, std::abs(a[v] - b[v]));
      agreement.distance += std::abs(a[v] - b[v]) / static_cast<double>(golden.size());
    }
    ++agreement.positions;
    agreement.close += difference <= kUlps * ulp;
    agreement.greedy += std::max_element(a, a + vocab) - a == std::max_element(b, b + vocab) - b;
  }
  return agreement;
}

TEST_P(NumericsTest, LogitsAgreeWithTorch) {
  const auto engine = Load(Numerics::kAuto);
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(engine->numerics(), Numerics::kReference);
  auto file = SafetensorsFile::Open(QuantisedModel(GetParam()) + "/golden.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto& tensors = (*file)->tensors();
  Agreement all;
  int cases = 0;
  for (; tensors.count(fmt::format("case{}.ids", cases)) != 0; ++cases) {
    const std::string name = fmt::format("case{}.", cases);
    std::vector<int32_t> ids;
    for (int64_t id : Read<int64_t>(tensors.at(name + "ids")))
      ids.push_back(static_cast<int32_t>(id));
    const auto logits = engine->Logits(ids);
    ASSERT_TRUE(logits.ok()) << logits.status();
    const Agreement one = Compare(*logits, Read<float>(tensors.at(name + "logits")),
                                  Read<int64_t>(tensors.at(name + "positions")),
                                  static_cast<size_t>(engine->vocab_size()));
    printf("  %zu tokens: %d positions, close %d, greedy %d\n", ids.size(), one.positions,
           one.close, one.greedy);
    all.positions += one.positions;
    all.close += one.close;
    all.greedy += one.greedy;
    const double noise = Read<float>(tensors.at(name + "noise"))[0];
    if (ids.size() > 100) {
      EXPECT_LE(one.distance, kNoise * noise);
    }
  }
  ASSERT_GE(cases, 5);
  if (GetParam() == "deep") return;  // its golden is no closer to itself (make_quantised.py)
  EXPECT_GE(all.close, kCloseShare * all.positions);
  EXPECT_GE(all.greedy, kGreedyShare * all.positions);
}

// The switch does something, and the wrong side of it is not close: the test above is not blind.
TEST_P(NumericsTest, FloatNumericsAreAnotherModel) {
  const auto reference = Load(Numerics::kReference);
  ASSERT_NE(reference, nullptr);
  const auto plain = Load(Numerics::kFloat);
  ASSERT_NE(plain, nullptr);
  EXPECT_EQ(plain->numerics(), Numerics::kFloat);
  EXPECT_NE(plain->digest(), reference->digest());
  std::vector<int32_t> ids;
  for (int i = 0; i < 300; ++i) ids.push_back((i * 53 + i * i) % 272);
  const auto a = reference->Logits(ids), b = plain->Logits(ids);
  ASSERT_TRUE(a.ok());
  ASSERT_TRUE(b.ok());
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < 300; ++i) positions.push_back(i);
  const Agreement agreement = Compare(*b, *a, positions, 272);
  EXPECT_LT(agreement.close, agreement.positions / 4);
  EXPECT_GT(agreement.greedy, agreement.positions / 2);
}

INSTANTIATE_TEST_SUITE_P(Models, NumericsTest, testing::Values("window", "csa", "hca", "deep"),
                         [](const auto& info) { return info.param; });

TEST(NumericsChoiceTest, AnIndexerThatCannotTurnIsRefused) {
  ModelDirectory directory(std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model/odd");
  EngineOptions options;
  options.numerics = Numerics::kReference;
  const auto engine = Engine::Load(directory.path(), options);
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(engine.status().message()), testing::HasSubstr("index_head_dim 10"));
}

TEST(NumericsChoiceTest, DamagedFp8DataIsNamed) {
  ModelDirectory directory(QuantisedModel("deep"));
  std::fstream file(directory.file("model.safetensors"),
                    std::ios::in | std::ios::out | std::ios::binary);
  auto opened = SafetensorsFile::Open(directory.file("model.safetensors"));
  ASSERT_TRUE(opened.ok());
  const auto poke = [&](const std::string& name, int64_t element, char byte) {
    const uint8_t* start = (*opened)->tensors().begin()->second.data;
    for (const auto& [other, view] : (*opened)->tensors()) start = std::min(start, view.data);
    uint64_t length = 0;
    file.seekg(0);
    file.read(reinterpret_cast<char*>(&length), sizeof(length));
    const int64_t at =
        8 + static_cast<int64_t>(length) + ((*opened)->tensors().at(name).data - start) + element;
    file.seekg(at);
    const char before = static_cast<char>(file.get());
    file.seekp(at);
    file.put(byte);
    file.flush();
    return before;
  };
  const char before = poke("layers.1.attn.wq_b.weight", 777, 0x7F);
  auto engine = Engine::Load(directory.path());
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(engine.status().message()),
              testing::HasSubstr("layers.1.attn.wq_b.weight: element 777 is not a number"));
  poke("layers.1.attn.wq_b.weight", 777, before);
  poke("layers.2.ffn.experts.1.w3.scale", 5, static_cast<char>(0xFF));
  engine = Engine::Load(directory.path());
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(engine.status().message()),
              testing::HasSubstr("layers.2.ffn.experts.1.w3.scale: element 5 is scale byte 255"));
}

}  // namespace
}  // namespace reprise::engine
