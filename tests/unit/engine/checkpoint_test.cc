// Checkpoints as published: V4-Flash, V4-Pro and a Base variant at full size (headers are real, the
// data is a hole), shards, the names of transformers, and what a damaged one says.
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/clock.h"
#include "engine/checkpoint.h"
#include "engine/digest.h"
#include "engine/engine.h"
#include "engine/model_info.h"
#include "engine/weights.h"
#include "tests/unit/engine/model_files.h"
#include "tests/unit/engine/published_models.h"

namespace reprise::engine {
namespace {

using testing::HasSubstr;
using TensorMap = std::map<std::string, StoredTensor>;

struct Census {
  const char* dtype;
  int64_t tensors, bytes;
};

void ExpectCensus(const ModelInfo& info, std::initializer_list<Census> rows) {
  int64_t tensors = 0, bytes = 0;
  for (const Census& row : rows) {
    const auto found = info.by_dtype.find(row.dtype);
    ASSERT_NE(found, info.by_dtype.end()) << row.dtype;
    EXPECT_EQ(found->second.tensors, row.tensors) << row.dtype;
    EXPECT_EQ(found->second.bytes, row.bytes) << row.dtype;
    tensors += row.tensors;
    bytes += row.bytes;
  }
  EXPECT_EQ(info.by_dtype.size(), rows.size());
  EXPECT_EQ(info.total.tensors, tensors);
  EXPECT_EQ(info.total.bytes, bytes);
}

ModelInfo InfoOf(const PublishedModel& model, const base::ScratchDir& scratch) {
  WriteSparse(model, Tensors(model), scratch.path());
  const base::Stopwatch stopwatch;
  auto info = ReadModelInfo(scratch.path());
  printf("  model info: %.2f s\n", static_cast<double>(stopwatch.ElapsedMicros()) * 1e-6);
  EXPECT_TRUE(info.ok()) << info.status();
  return info.ok() ? *std::move(info) : ModelInfo();
}

TEST(PublishedTest, FlashHasTheTotalsOfItsCensus) {
  const base::ScratchDir scratch("flash");
  const ModelInfo info = InfoOf(Flash(), scratch);
  EXPECT_TRUE(info.usable.ok()) << info.usable;
  ExpectCensus(info, {{"BF16", 433, 2830518528},
                      {"F32", 417, 144672072},
                      {"F8_E4M3", 375, 6023020544},
                      {"F8_E8M0", 34167, 8858737664},
                      {"I64", 3, 18616320},
                      {"I8", 33792, 141733920768}});
  EXPECT_EQ(info.total.tensors, 69187);
  EXPECT_EQ(info.total.bytes, 159609485896);
  EXPECT_EQ(info.total.elements, 158069433298);
  EXPECT_EQ(info.window_layers, 2);
  EXPECT_EQ(info.csa_layers, 21);
  EXPECT_EQ(info.hca_layers, 20);
  EXPECT_EQ(info.mtp_blocks, 1);
  EXPECT_TRUE(info.quantised);
  // 21 CSA layers with 32 entries of 584 and 32 keys of 68 bytes a page, 20 HCA layers with one.
  EXPECT_EQ(info.kv_page_tokens, 128);
  EXPECT_EQ(info.kv_page_bytes, 21 * 32 * (584 + 68) + 20 * 584);
  EXPECT_NEAR(static_cast<double>(info.kv_page_bytes) / 128, 3514.25, 0.01);
  EXPECT_NEAR(static_cast<double>(info.parameters) * 1e-9, 284, 1);
  EXPECT_NEAR(static_cast<double>(info.active_parameters) * 1e-9, 13, 1);
}

// All of 160 GB but the forward pass: nothing in it reads more than a page of a tensor.
TEST(PublishedTest, FlashIsBoundAndIdentifiedWithoutReadingItsData) {
  const base::ScratchDir scratch("flash");
  WriteSparse(Flash(), Tensors(Flash()), scratch.path());
  std::ofstream(scratch.path() + "/tokenizer.json") << "{}";
  const auto config = LoadConfig(scratch.path());
  ASSERT_TRUE(config.ok()) << config.status();
  const auto load = [&]() -> std::string {
    const base::Stopwatch stopwatch;
    auto checkpoint = Checkpoint::Open(scratch.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    (*checkpoint)->PrefetchSamples();
    const auto weights = BindWeights(**checkpoint, *config);
    EXPECT_TRUE(weights.ok()) << weights.status();
    const auto digest = CheckpointDigest(**checkpoint, /*reference=*/true);
    EXPECT_TRUE(digest.ok()) << digest.status();
    printf("  opened, bound and identified: %.2f s\n",
           static_cast<double>(stopwatch.ElapsedMicros()) * 1e-6);
    return digest.value_or("");
  };
  rusage before, after;
  ASSERT_EQ(getrusage(RUSAGE_SELF, &before), 0);
  const std::string digest = load();
  ASSERT_EQ(getrusage(RUSAGE_SELF, &after), 0);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 4 << 20);  // KiB, of 149 million
  EXPECT_EQ(load(), digest);
  // Other weights in one matrix.
  auto checkpoint = Checkpoint::Open(scratch.path());
  ASSERT_TRUE(checkpoint.ok());
  const std::string name = "layers.7.ffn.experts.11.w2.weight";
  ASSERT_NE((*checkpoint)->Find(name), nullptr);
  for (const auto& file : (*checkpoint)->files()) {
    const auto found = file->tensors().find(name);
    if (found == file->tensors().end()) continue;
    std::fstream data(file->path(), std::ios::in | std::ios::out | std::ios::binary);
    uint64_t length = 0;
    data.read(reinterpret_cast<char*>(&length), sizeof(length));
    const uint8_t* first = found->second.data;
    for (const auto& [other, tensor] : file->tensors()) first = std::min(first, tensor.data);
    data.seekp(static_cast<std::streamoff>(sizeof(length) + length) + (found->second.data - first));
    data << std::string(found->second.bytes, 'x');
  }
  EXPECT_NE(load(), digest);
}

TEST(PublishedTest, ProHasTheTotalsOfItsTable) {
  const base::ScratchDir scratch("pro");
  const ModelInfo info = InfoOf(Pro(), scratch);
  EXPECT_TRUE(info.usable.ok()) << info.usable;
  ExpectCensus(info, {{"BF16", 619, 5633798656},
                      {"F32", 590, 351105656},
                      {"F8_E4M3", 528, 23169335296},
                      {"F8_E8M0", 71952, 49150268416},
                      {"I64", 3, 18616320},
                      {"I8", 71424, 786381668352}});
  EXPECT_EQ(info.total.tensors, 145116);
  EXPECT_EQ(info.total.bytes, 864704792696);
  EXPECT_EQ(info.total.elements, 861608274846);
  EXPECT_EQ(info.csa_layers, 30);
  EXPECT_EQ(info.hca_layers, 31);
}

TEST(PublishedTest, BaseVariantHasFp8Experts) {
  const base::ScratchDir scratch("base");
  PublishedModel model = Flash();
  model.base = true;
  const ModelInfo info = InfoOf(model, scratch);
  EXPECT_TRUE(info.usable.ok()) << info.usable;
  EXPECT_EQ(info.by_dtype.count("I8"), 0u);
  EXPECT_EQ(info.by_dtype.at("F8_E4M3").tensors, 375 + 33792);
}

TEST(PublishedTest, ATensorThatDoesNotFitIsNamedWithWhatWasExpectedAndFound) {
  PublishedModel model = Flash();
  model.experts = 8;
  model.shards = 3;
  const std::vector<PublishedTensor> good = Tensors(model);
  struct Case {
    const char* name;
    std::function<void(PublishedTensor*)> damage;
    const char* says;
  };
  const std::vector<Case> cases = {
      {"layers.7.attn.wq_b.weight", [](PublishedTensor* t) { t->shape[0] = 32767; },
       "tensor layers.7.attn.wq_b.weight: expected shape [32768, 1024], found [32767, 1024]"},
      {"layers.7.attn.wq_b.scale",
       [](PublishedTensor* t) {
         t->shape = {8, 256};
       },
       "tensor layers.7.attn.wq_b.scale: expected shape [256, 8], found [8, 256]"},
      {"layers.9.ffn.experts.3.w2.scale", [](PublishedTensor* t) { t->dtype = "BF16"; },
       "tensor layers.9.ffn.experts.3.w2.scale: expected F8_E8M0 or F32, found BF16"},
      {"layers.9.ffn.experts.3.w2.scale", [](PublishedTensor* t) { t->name = "stray"; },
       "tensor layers.9.ffn.experts.3.w2.scale is missing; expected F8_E8M0 [4096, 64]"},
      {"layers.9.ffn.experts.3.w1.weight", [](PublishedTensor* t) { t->dtype = "F16"; },
       "layers.9.ffn.experts.3.w1.weight: expected shape [2048, 4096], found [2048, 2048]"},
      {"layers.5.ffn.shared_experts.w1.weight", [](PublishedTensor* t) { t->dtype = "F8_E5M2"; },
       "layers.5.ffn.shared_experts.w1.weight: expected BF16, F32 or F8_E4M3, found F8_E5M2"},
      {"layers.1.ffn.gate.tid2eid", [](PublishedTensor* t) { t->dtype = "F64"; },
       "tensor layers.1.ffn.gate.tid2eid: expected I64, found F64"},
      {"layers.4.attn.attn_sink", [](PublishedTensor* t) { t->dtype = "F8_E4M3"; },
       "tensor layers.4.attn.attn_sink: expected BF16 or F32, found F8_E4M3"},
      {"mtp.0.e_proj.weight", [](PublishedTensor* t) { t->name = "mtp.0.other"; },
       "tensor mtp.0.e_proj.weight is missing; expected shape [4096, 4096]"},
      {"norm.weight", [](PublishedTensor* t) { t->name = "norm.weights"; },
       "tensor norm.weight is missing; expected shape [4096]"},
  };
  for (const Case& c : cases) {
    const base::ScratchDir scratch("damaged");
    std::vector<PublishedTensor> tensors = good;
    for (PublishedTensor& tensor : tensors) {
      if (tensor.name == c.name) c.damage(&tensor);
    }
    WriteSparse(model, tensors, scratch.path());
    const auto info = ReadModelInfo(scratch.path());
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_FALSE(info->usable.ok()) << c.says;
    EXPECT_THAT(std::string(info->usable.message()), HasSubstr(c.says));
    EXPECT_THAT(std::string(info->usable.message()), HasSubstr(scratch.path()));
  }
}

TEST(PublishedTest, AFileMayLackTheMtpBlockOrCarryCopiesOfTheEmbedding) {
  PublishedModel model = Flash();
  model.experts = 8;
  model.shards = 2;
  std::vector<PublishedTensor> tensors = Tensors(model);
  tensors.push_back({"mtp.0.emb.tok_emb.weight", "BF16", {model.vocab, model.hidden}});
  tensors.push_back({"mtp.0.head.weight", "BF16", {model.vocab, model.hidden}});
  {
    const base::ScratchDir scratch("copies");
    WriteSparse(model, tensors, scratch.path());
    const auto info = ReadModelInfo(scratch.path());
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_TRUE(info->usable.ok()) << info->usable;
    EXPECT_EQ(info->mtp_blocks, 1);
  }
  std::erase_if(tensors, [](const PublishedTensor& t) { return t.name.starts_with("mtp."); });
  const base::ScratchDir scratch("none");
  WriteSparse(model, tensors, scratch.path());
  const auto info = ReadModelInfo(scratch.path());
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_TRUE(info->usable.ok()) << info->usable;
  EXPECT_EQ(info->mtp_blocks, 0);
}

// The same model in other clothes.

class ClothesTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string source = std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model/mixed";
    directory_ = std::make_unique<ModelDirectory>(source);
    auto file = SafetensorsFile::Open(directory_->file("model.safetensors"));
    ASSERT_TRUE(file.ok()) << file.status();
    for (const auto& [name, view] : (*file)->tensors()) {
      tensors_[name] = {view.dtype, view.shape,
                        std::string(reinterpret_cast<const char*>(view.data), view.bytes)};
    }
    for (int i = 0; i < 150; ++i) ids_.push_back((i * 37 + i * i) % 272);
    expected_ = Logits();
    ASSERT_FALSE(expected_.empty());
  }
  std::vector<float> Logits() {
    const auto engine = Engine::Load(directory_->path());
    EXPECT_TRUE(engine.ok()) << engine.status();
    if (!engine.ok()) return {};
    auto logits = (*engine)->Logits(ids_);
    EXPECT_TRUE(logits.ok()) << logits.status();
    return logits.ok() ? *std::move(logits) : std::vector<float>();
  }
  void Write(const std::string& name, const TensorMap& tensors) {
    std::ofstream(directory_->file(name), std::ios::binary) << SafetensorsBytes(tensors);
  }

  std::unique_ptr<ModelDirectory> directory_;
  TensorMap tensors_;
  std::vector<int32_t> ids_;
  std::vector<float> expected_;
};

TEST_F(ClothesTest, ShardsGiveTheSameBits) {
  std::vector<TensorMap> shards(3);
  nlohmann::json map = nlohmann::json::object();
  size_t i = 0;
  for (const auto& [name, tensor] : tensors_) {
    shards[i % 3][name] = tensor;
    map[name] = fmt::format("part-{}.safetensors", i++ % 3);
  }
  for (size_t s = 0; s < 3; ++s) Write(fmt::format("part-{}.safetensors", s), shards[s]);
  std::filesystem::remove(directory_->file("model.safetensors"));
  std::ofstream(directory_->file("model.safetensors.index.json"))
      << nlohmann::json({{"weight_map", map}});
  EXPECT_EQ(Logits(), expected_);
}

TEST_F(ClothesTest, FloatsWidenedToF32GiveTheSameBits) {
  for (auto& [name, tensor] : tensors_) {
    if (tensor.dtype != "BF16") continue;
    std::string wide;
    for (size_t i = 0; i < tensor.bytes.size(); i += 2)
      wide += std::string(2, '\0') + tensor.bytes.substr(i, 2);
    tensor = {"F32", tensor.shape, wide};
  }
  Write("model.safetensors", tensors_);
  EXPECT_EQ(Logits(), expected_);
}

TEST_F(ClothesTest, NamesOfTransformersGiveTheSameBits) {
  const std::vector<std::pair<std::string, std::string>> renames = {
      {"attn.indexer.compressor.wkv", "self_attn.compressor.indexer.kv_proj"},
      {"attn.indexer.compressor.wgate", "self_attn.compressor.indexer.gate_proj"},
      {"attn.indexer.compressor.ape", "self_attn.compressor.indexer.position_bias"},
      {"attn.indexer.compressor.norm", "self_attn.compressor.indexer.kv_norm"},
      {"attn.indexer.wq_b", "self_attn.compressor.indexer.q_b_proj"},
      {"attn.indexer.weights_proj", "self_attn.compressor.indexer.scorer.weights_proj"},
      {"attn.compressor.wkv", "self_attn.compressor.kv_proj"},
      {"attn.compressor.wgate", "self_attn.compressor.gate_proj"},
      {"attn.compressor.ape", "self_attn.compressor.position_bias"},
      {"attn.compressor.norm", "self_attn.compressor.kv_norm"},
      {"attn.wq_a", "self_attn.q_a_proj"},
      {"attn.wq_b", "self_attn.q_b_proj"},
      {"attn.wkv", "self_attn.kv_proj"},
      {"attn.wo_a", "self_attn.o_a_proj"},
      {"attn.wo_b", "self_attn.o_b_proj"},
      {"attn.q_norm", "self_attn.q_a_norm"},
      {"attn.kv_norm", "self_attn.kv_norm"},
      {"attn.attn_sink", "self_attn.sinks"},
      {"attn_norm", "input_layernorm"},
      {"ffn_norm", "post_attention_layernorm"},
      {"hc_attn_", "attn_hc."},
      {"hc_ffn_", "ffn_hc."},
      {"ffn.gate.bias", "mlp.gate.e_score_correction_bias"},
      {"ffn.gate.", "mlp.gate."},
      {"ffn.shared_experts.w1", "mlp.shared_experts.gate_proj"},
      {"ffn.shared_experts.w3", "mlp.shared_experts.up_proj"},
      {"ffn.shared_experts.w2", "mlp.shared_experts.down_proj"},
  };
  TensorMap renamed;
  for (const auto& [name, tensor] : tensors_) {
    if (name.find(".experts.") != std::string::npos) continue;
    std::string to = name;
    if (name == "embed.weight") to = "model.embed_tokens.weight";
    if (name == "head.weight") to = "lm_head.weight";
    if (name == "norm.weight") to = "model.norm.weight";
    if (name.starts_with("hc_head_")) to = "model.hc_head.hc_" + name.substr(8);
    if (name.starts_with("layers.")) {
      const size_t dot = name.find('.', 7) + 1;
      for (const auto& [from, with] : renames) {
        if (name.compare(dot, from.size(), from) != 0) continue;
        to = "model." + name.substr(0, dot) + with + name.substr(dot + from.size());
        break;
      }
    }
    ASSERT_NE(to, name) << "no name for it";
    renamed[to] = tensor;
  }
  for (int layer = 0; layer < 4; ++layer) {
    StoredTensor both{"BF16", {6, 32, 32}, ""}, down{"BF16", {6, 32, 16}, ""};
    for (int e = 0; e < 6; ++e) {
      const std::string expert = fmt::format("layers.{}.ffn.experts.{}.", layer, e);
      both.bytes +=
          tensors_.at(expert + "w1.weight").bytes + tensors_.at(expert + "w3.weight").bytes;
      down.bytes += tensors_.at(expert + "w2.weight").bytes;
    }
    renamed[fmt::format("model.layers.{}.mlp.experts.gate_up_proj", layer)] = both;
    renamed[fmt::format("model.layers.{}.mlp.experts.down_proj", layer)] = down;
  }
  Write("model.safetensors", renamed);
  EXPECT_EQ(Logits(), expected_);

  renamed["model.layers.2.mlp.experts.gate_up_proj"].shape = {32, 6, 32};
  Write("model.safetensors", renamed);
  const auto engine = Engine::Load(directory_->path());
  EXPECT_THAT(std::string(engine.status().message()),
              HasSubstr("tensor layers.2.ffn.experts.0.w1.weight (stored as "
                        "model.layers.2.mlp.experts.gate_up_proj): expected shape [16, 32], "
                        "found [3, 32]"));
}

TEST_F(ClothesTest, ATensorThatIsThereTwiceIsRefused) {
  tensors_["model.norm.weight"] = tensors_.at("norm.weight");
  Write("model.safetensors", tensors_);
  const auto engine = Engine::Load(directory_->path());
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(engine.status().message()), HasSubstr("norm.weight"));
}

}  // namespace
}  // namespace reprise::engine
