// Goal: a damaged or impossible checkpoint directory is one line that names the file (and tensor or
// key), what was expected and what was found; never a crash, never a wrong model. Method: a good
// model with one thing changed.
#include <sys/resource.h>

#include <cstring>
#include <filesystem>
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/config.h"
#include "engine/engine.h"
#include "tests/unit/engine/model_files.h"

namespace reprise::engine {
namespace {

using Json = nlohmann::json;
using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr size_t kLengthBytes = 8;

std::string Bytes(uint64_t number) {
  return std::string(reinterpret_cast<const char*>(&number), sizeof(number));
}

// The header of a safetensors file and the data behind it.
struct Parts {
  Json header;
  std::string data;
  std::string Join() const {
    return JoinText(header.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  std::string JoinText(const std::string& text) const { return Bytes(text.size()) + text + data; }
};

class BadModelTest : public testing::Test {
 protected:
  BadModelTest() : model_(std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model/two-streams") {}

  std::string Read(const std::string& name) const { return *base::ReadFile(model_.file(name)); }
  void Write(const std::string& name, const std::string& content) const {
    ASSERT_TRUE(base::WriteFileAtomic(model_.file(name), content).ok());
  }
  // The one line with which the directory is refused; it names `file`, or the directory.
  std::string Error(const std::string& file) const {
    auto engine = Engine::Load(model_.path(), {.threads = 1, .max_context = 0});
    EXPECT_FALSE(engine.ok());
    if (engine.ok()) return "";
    const std::string text(engine.status().message());
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    EXPECT_THAT(text, AnyOf(HasSubstr(model_.file(file)), StartsWith(model_.path() + ": ")));
    return text;
  }
  std::string ErrorOfWeights(const std::string& content) const {
    Write("model.safetensors", content);
    return Error("model.safetensors");
  }
  Parts Weights() const {
    const std::string file = Read("model.safetensors");
    uint64_t length = 0;
    std::memcpy(&length, file.data(), kLengthBytes);
    return {Json::parse(file.substr(kLengthBytes, length)), file.substr(kLengthBytes + length)};
  }
  std::string ErrorOfHeader(const std::function<void(Json*)>& change) const {
    Parts parts = original_;
    change(&parts.header);
    return ErrorOfWeights(parts.Join());
  }
  std::string ErrorOfConfig(const std::function<void(Json*)>& change) const {
    Json config = Json::parse(config_);
    change(&config);
    Write("config.json", config.dump());
    return Error("config.json");
  }

  ModelDirectory model_;
  const std::string config_ = Read("config.json");
  const Parts original_ = Weights();
};

TEST_F(BadModelTest, TheGoodOneLoads) {
  auto engine = Engine::Load(model_.path(), {.threads = 1, .max_context = 0});
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_TRUE((*engine)->Logits(std::vector<int32_t>{0, 5, 7}).ok());
}

// ---- model.safetensors

TEST_F(BadModelTest, TruncatedAnywhere) {
  const std::string file = Read("model.safetensors");
  const size_t header_end = file.size() - original_.data.size();
  for (size_t size : {size_t{0}, size_t{1}, kLengthBytes - 1, kLengthBytes, kLengthBytes + 1,
                      header_end / 2, header_end - 1, header_end, header_end + 1,
                      header_end + original_.data.size() / 2, file.size() - 1}) {
    SCOPED_TRACE(size);
    EXPECT_THAT(ErrorOfWeights(file.substr(0, size)),
                AnyOf(HasSubstr("truncated"), HasSubstr("no safetensors file")));
  }
  EXPECT_THAT(ErrorOfWeights(file + "x"), HasSubstr("1 bytes follow the last tensor"));
}

TEST_F(BadModelTest, HeaderLengthsThatCannotBe) {
  const std::string rest = Read("model.safetensors").substr(kLengthBytes);
  for (uint64_t length : {uint64_t{rest.size() + 1}, uint64_t{100'000'001}, uint64_t{1} << 63,
                          UINT64_MAX, UINT64_MAX - 7}) {
    EXPECT_THAT(ErrorOfWeights(Bytes(length) + rest),
                HasSubstr("header of " + std::to_string(length) + " bytes in a file of"));
  }
  EXPECT_THAT(ErrorOfWeights(Bytes(0) + rest), HasSubstr("the header is not a JSON object"));
}

TEST_F(BadModelTest, HeadersThatAreNoJsonObject) {
  for (const std::string& text :
       {std::string("[]"), std::string("{"), std::string("5"), std::string("{\"a\":"),
        std::string("\xff\xfe"), std::string(1 << 20, '['), std::string(16, '\0')}) {
    EXPECT_THAT(ErrorOfWeights(original_.JoinText(text)),
                HasSubstr("the header is not a JSON object"));
  }
}

TEST_F(BadModelTest, EntriesThatAreMalformedNameTheTensor) {
  struct Case {
    const char* key;
    Json value;
    const char* expected;
  };
  const std::vector<Case> cases = {
      {"dtype", 5, "lacks dtype"},
      {"dtype", "F12", "unknown dtype \"F12\""},
      {"dtype", "", "unknown dtype \"\""},
      {"shape", "x", "its shape is malformed"},
      {"shape", {-1, 48}, "its shape is malformed"},
      {"shape", {1.5}, "its shape is malformed"},
      {"shape", {uint64_t{1} << 41}, "its shape is malformed"},
      {"shape", {uint64_t{1} << 40, uint64_t{1} << 40}, "its shape is malformed"},
      {"shape", {1 << 20, 1 << 20}, "takes"},
      {"shape", {0, 48}, "takes 0 bytes"},
      {"shape", Json::array(), "takes"},
      {"data_offsets", {0}, "its data_offsets are malformed"},
      {"data_offsets", {0, -1}, "its data_offsets are malformed"},
      {"data_offsets", {8, 0}, "its data_offsets are malformed"},
      {"data_offsets", {"0", "8"}, "its data_offsets are malformed"},
      {"data_offsets", {0, UINT64_MAX}, "its data ends at byte 18446744073709551615"},
      {"data_offsets", {0, 1}, "and has 1"},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.expected);
    EXPECT_THAT(
        ErrorOfHeader([&](Json* header) { (*header)["norm.weight"][each.key] = each.value; }),
        AllOf(HasSubstr("norm.weight"), HasSubstr(each.expected)));
  }
  EXPECT_THAT(ErrorOfHeader([](Json* header) { (*header)["norm.weight"] = 5; }),
              HasSubstr("norm.weight"));
  EXPECT_THAT(ErrorOfHeader([](Json* header) { (*header)["norm.weight"].erase("shape"); }),
              HasSubstr("norm.weight"));
}

TEST_F(BadModelTest, OverlapsAndGapsAreFound) {
  // Two tensors of the same size in the same place leave a hole where one of them was.
  EXPECT_THAT(ErrorOfHeader([](Json* header) {
                (*header)["norm.weight"]["data_offsets"] =
                    (*header)["layers.0.attn_norm.weight"]["data_offsets"];
              }),
              HasSubstr("overlap or leave a gap at byte"));
  Parts gap = original_;
  for (auto& [name, entry] : gap.header.items()) {
    if (name == "__metadata__") continue;
    for (Json& offset : entry["data_offsets"]) offset = offset.get<uint64_t>() + 4;
  }
  gap.data = "gap!" + gap.data;
  EXPECT_THAT(ErrorOfWeights(gap.Join()), HasSubstr("overlap or leave a gap at byte 0"));
}

TEST_F(BadModelTest, TensorsMustBeThoseOfTheConfig) {
  EXPECT_THAT(ErrorOfHeader([](Json* header) {
                (*header)["norm.weights"] = (*header)["norm.weight"];
                header->erase("norm.weight");
              }),
              AllOf(HasSubstr("norm.weight"), HasSubstr("missing"), HasSubstr("[48]")));
  EXPECT_THAT(ErrorOfHeader([](Json* header) {
                const Json shape = (*header)["head.weight"]["shape"];
                (*header)["head.weight"]["shape"] = {shape[1], shape[0]};
              }),
              AllOf(HasSubstr("head.weight"), HasSubstr("[300, 48]"), HasSubstr("[48, 300]")));
  Parts extra = original_;
  extra.header["spare.weight"] = {{"dtype", "F32"},
                                  {"shape", {1}},
                                  {"data_offsets", {extra.data.size(), extra.data.size() + 4}}};
  extra.data += "1234";
  EXPECT_THAT(ErrorOfWeights(extra.Join()),
              AllOf(HasSubstr("spare.weight"), HasSubstr("not part of")));
  // A matrix of whole numbers, and a table of floats of the same size.
  EXPECT_THAT(ErrorOfHeader([](Json* header) { (*header)["norm.weight"]["dtype"] = "I16"; }),
              AllOf(HasSubstr("norm.weight"), HasSubstr("I16")));
  EXPECT_THAT(
      ErrorOfHeader([](Json* header) { (*header)["layers.0.ffn.gate.tid2eid"]["dtype"] = "F64"; }),
      AllOf(HasSubstr("layers.0.ffn.gate.tid2eid"), HasSubstr("I64"), HasSubstr("F64")));
}

TEST_F(BadModelTest, AHashTableThatNamesNoExpert) {
  for (int64_t expert : {int64_t{4}, int64_t{-1}, INT64_MIN}) {
    Parts parts = original_;
    const size_t begin = parts.header["layers.0.ffn.gate.tid2eid"]["data_offsets"][0];
    parts.data.replace(begin + 8, 8, Bytes(static_cast<uint64_t>(expert)));
    EXPECT_THAT(ErrorOfWeights(parts.Join()),
                AllOf(HasSubstr("layers.0.ffn.gate.tid2eid"), HasSubstr("element 1"),
                      HasSubstr(std::to_string(expert))));
  }
}

// ---- shards

TEST_F(BadModelTest, AnIndexMustAgreeWithItsShards) {
  Json map = Json::object();
  for (const auto& [name, entry] : original_.header.items()) {
    if (name != "__metadata__") map[name] = "one.safetensors";
  }
  std::filesystem::rename(model_.file("model.safetensors"), model_.file("one.safetensors"));
  const std::string index = "model.safetensors.index.json";
  auto error = [&](const Json& content) {
    Write(index, content.dump());
    auto engine = Engine::Load(model_.path(), {.threads = 1, .max_context = 0});
    EXPECT_FALSE(engine.ok());
    const std::string text(engine.status().message());
    EXPECT_THAT(text, HasSubstr(model_.path()));
    EXPECT_EQ(text.find('\n'), std::string::npos);
    return text;
  };
  EXPECT_THAT(error(5), HasSubstr("no weight_map object"));
  EXPECT_THAT(error({{"weight_map", {}}}), HasSubstr("no weight_map object"));
  Json bad = map;
  bad["norm.weight"] = 5;
  EXPECT_THAT(error({{"weight_map", bad}}), HasSubstr("norm.weight has no file name"));
  bad["norm.weight"] = "../one.safetensors";
  EXPECT_THAT(error({{"weight_map", bad}}), HasSubstr("norm.weight has no file name"));
  bad["norm.weight"] = "two.safetensors";
  EXPECT_THAT(error({{"weight_map", bad}}), HasSubstr("safetensors"));
  bad = map;
  bad.erase("norm.weight");
  EXPECT_THAT(error({{"weight_map", bad}}), HasSubstr("the index does not say so"));
  bad = map;
  bad["spare"] = "one.safetensors";
  EXPECT_THAT(error({{"weight_map", bad}}), HasSubstr("spare is not in one.safetensors"));
  Write(index, Json{{"weight_map", map}}.dump());
  EXPECT_TRUE(Engine::Load(model_.path(), {.threads = 1, .max_context = 0}).ok());
}

// ---- missing files, tokenizer

TEST_F(BadModelTest, MissingFilesAreNamed) {
  for (const char* name : {"model.safetensors", "tokenizer.json", "config.json"}) {
    std::filesystem::remove(model_.file(name));
    EXPECT_THAT(Error(name), HasSubstr(model_.file(name)));
    EXPECT_EQ(Engine::Load(model_.path()).status().code(), absl::StatusCode::kNotFound);
  }
  std::filesystem::create_directory(model_.file("config.json"));
  EXPECT_THAT(Error("config.json"), HasSubstr("config.json"));
}

TEST_F(BadModelTest, ATokenizerOfAnotherModel) {
  std::filesystem::copy_file(std::string(REPRISE_SOURCE_DIR) + "/examples/tiny-v4/tokenizer.json",
                             model_.file("tokenizer.json"),
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(Error("tokenizer.json"),
              HasSubstr("tokenizer.json has 640 tokens and config.json vocab_size 300"));
}

TEST_F(BadModelTest, TokenizersWithValuesOfAnotherType) {
  const Json good = Json::parse(Read("tokenizer.json"));
  const std::vector<std::function<void(Json*)>> changes = {
      [](Json* root) { (*root)["model"] = 5; },
      [](Json* root) { (*root)["model"]["type"] = 5; },
      [](Json* root) { (*root)["model"]["byte_fallback"] = "yes"; },
      [](Json* root) { (*root)["model"]["vocab"] = Json::array(); },
      [](Json* root) { (*root)["model"]["vocab"]["a"] = "x"; },
      [](Json* root) { (*root)["model"]["vocab"]["a"] = -1; },
      [](Json* root) { (*root)["model"]["vocab"]["a"] = UINT64_MAX; },
      [](Json* root) { (*root)["model"]["vocab"].erase("a"); },
      [](Json* root) { (*root)["model"]["merges"] = {5}; },
      [](Json* root) { (*root)["model"]["merges"] = {"ab"}; },
      [](Json* root) { (*root)["added_tokens"] = 5; },
      [](Json* root) { (*root)["added_tokens"] = {5}; },
      [](Json* root) {
        (*root)["added_tokens"] = {{{"id", "5"}, {"content", "x"}}};
      },
      [](Json* root) {
        (*root)["added_tokens"] = {{{"id", 1 << 25}, {"content", "x"}}};
      },
      [](Json* root) {
        (*root)["added_tokens"] = {{{"id", 5}, {"content", "x"}, {"lstrip", "no"}}};
      },
      [](Json* root) { (*root)["normalizer"] = "NFC"; },
      [](Json* root) {
        (*root)["normalizer"] = {{"type", 5}};
      },
      [](Json* root) { (*root)["pre_tokenizer"] = 5; },
      [](Json* root) { (*root)["pre_tokenizer"]["type"] = 5; },
      [](Json* root) { (*root)["pre_tokenizer"]["pretokenizers"] = {5}; },
      [](Json* root) { (*root)["pre_tokenizer"]["pretokenizers"] = 5; },
      [](Json* root) { (*root)["pre_tokenizer"]["pretokenizers"][0]["pattern"] = "x"; },
      [](Json* root) { (*root)["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "("; },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    SCOPED_TRACE(i);
    Json bad = good;
    changes[i](&bad);
    Write("tokenizer.json", bad.dump());
    EXPECT_THAT(Error("tokenizer.json"), HasSubstr(model_.file("tokenizer.json")));
  }
}

// ---- config.json

TEST_F(BadModelTest, ImpossibleConfigsNameTheKey) {
  struct Case {
    const char* key;
    Json value;
    const char* expected;
  };
  const std::vector<Case> cases = {
      {"num_attention_heads", 0, "num_attention_heads is 0; possible: 1 to"},
      {"num_attention_heads", -8, "num_attention_heads is -8"},
      {"num_attention_heads", 7, "num_attention_heads 7 is not a multiple of o_groups 4"},
      {"num_attention_heads", "8", "num_attention_heads is \"8\", not an integer"},
      {"num_attention_heads", 8.5, "num_attention_heads is 8.5, not an integer"},
      {"num_attention_heads", nullptr, "num_attention_heads is missing"},
      {"num_hidden_layers", 0, "num_hidden_layers is 0"},
      {"num_hidden_layers", 6, "compress_ratios has 5 entries for 6 layers"},
      {"num_hidden_layers", 3, "compress_ratios has 5 entries for 3 layers"},
      {"hidden_size", 0, "hidden_size is 0"},
      {"hidden_size", UINT64_MAX, "hidden_size is"},
      {"vocab_size", 0, "vocab_size is 0"},
      {"vocab_size", 1e30, "vocab_size is 1e+30, not an integer"},
      {"head_dim", 0, "head_dim is 0"},
      {"qk_rope_head_dim", 3, "qk_rope_head_dim 3 must be even"},
      {"qk_rope_head_dim", 18, "at most head_dim 16"},
      {"o_groups", 0, "o_groups is 0"},
      {"sliding_window", 0, "sliding_window is 0"},
      {"sliding_window", 1 << 24, "sliding_window is 16777216; possible: 1 to 65536"},
      {"compress_ratios", {4, 4}, "compress_ratios has 2 entries for 4 layers"},
      {"compress_ratios", 4, "compress_ratios is missing or not a list"},
      {"compress_ratios", {4, -4, 128, 0}, "compress_ratios has -4 for layer 1"},
      {"compress_ratios", {4, 4, 5000, 0}, "compress_ratios has 5000 for layer 2"},
      {"compress_ratios", {4, "4", 128, 0}, "compress_ratios has \"4\" for layer 1"},
      {"compress_ratios", {4, 4093, 4091, 4079}, "no common multiple of a usable size"},
      {"index_topk", 0, "layers with ratio 4 need"},
      {"index_n_heads", 0, "layers with ratio 4 need"},
      {"index_head_dim", 2, "layers with ratio 4 need"},
      {"n_routed_experts", 0, "n_routed_experts is 0"},
      {"n_routed_experts", 65537, "n_routed_experts is 65537"},
      {"num_experts_per_tok", 5, "num_experts_per_tok 5 exceeds n_routed_experts 4"},
      {"hc_mult", 0, "hc_mult is 0"},
      {"hc_mult", 9, "hc_mult is 9; possible: 1 to 8"},
      {"hc_sinkhorn_iters", 0, "hc_sinkhorn_iters is 0"},
      {"max_position_embeddings", 0, "max_position_embeddings is 0"},
      {"rms_norm_eps", -1, "rms_norm_eps is -1"},
      {"rope_theta", "x", "rope_theta is \"x\", not a number"},
      {"rope_scaling", 5, "rope_scaling is not an object"},
      {"rope_scaling", {{"type", "linear"}}, "rope_scaling"},
      {"eos_token_id", 300, "bos_token_id or eos_token_id >= vocab_size"},
      {"eos_token_id", {1, 2}, "eos_token_id is [1,2], not an integer"},
      {"model_type", "llama", "model_type is \"llama\"; this engine knows \"deepseek_v4\""},
      {"scoring_func", "sigmoid", "scoring_func"},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.key);
    EXPECT_THAT(ErrorOfConfig([&](Json* config) { (*config)[each.key] = each.value; }),
                HasSubstr(each.expected));
  }
}

TEST_F(BadModelTest, ConfigsThatAreNoObject) {
  for (const char* text : {"", "[]", "{", "5", "\xff", "{\"vocab_size\": 1"}) {
    Write("config.json", text);
    EXPECT_THAT(Error("config.json"), HasSubstr("config.json: not a JSON object"));
  }
}

// Sizes that no checkpoint has are refused by what is stored, before anything is allocated.
TEST_F(BadModelTest, HugeDeclaredSizesCostNothing) {
  struct rusage before, after;
  ASSERT_EQ(::getrusage(RUSAGE_SELF, &before), 0);
  for (const char* key :
       {"vocab_size", "hidden_size", "q_lora_rank", "o_lora_rank", "moe_intermediate_size"}) {
    EXPECT_THAT(ErrorOfConfig([&](Json* config) { (*config)[key] = 1 << 24; }),
                AllOf(HasSubstr("expected"), HasSubstr("found")))
        << key;
  }
  EXPECT_THAT(ErrorOfConfig([](Json* config) {
                (*config)["num_hidden_layers"] = 4096;
                (*config)["n_routed_experts"] = 65536;
                (*config)["compress_ratios"] = std::vector<int>(4096, 4);
              }),
              HasSubstr("n_routed_experts 65536 in num_hidden_layers 4096; possible: 262144"));
  ASSERT_EQ(::getrusage(RUSAGE_SELF, &after), 0);
  constexpr int64_t kMostKib = 512 << 10;
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, kMostKib);
}

}  // namespace
}  // namespace reprise::engine
