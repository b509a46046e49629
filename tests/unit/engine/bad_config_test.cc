// Goal and method: bad_model.h. Here: missing files, tokenizer.json, config.json.
#include <sys/resource.h>

#include <filesystem>

#include "tests/unit/engine/bad_model.h"

namespace reprise::engine {
namespace {

using testing::AllOf;
using testing::HasSubstr;

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
