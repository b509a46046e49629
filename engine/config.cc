#include "engine/config.h"

#include <cmath>
#include <numeric>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/status_macros.h"

namespace reprise::engine {
namespace {

constexpr uint64_t kConfigBytesMax = 16 << 20;
constexpr int64_t kMaxStreams = 8;  // kernels/cpu/mhc.h holds gates in fixed arrays of this size
constexpr int64_t kMaxExperts = 65536;  // routes are 16-bit
// Routed experts of all layers: bounds the list of tensors that a checkpoint is checked against.
constexpr int64_t kMaxExpertsInAll = 1 << 18;
constexpr int64_t kMaxWindow = 1 << 16;  // every sequence holds a whole window for each layer

using Json = nlohmann::json;

// Reads members of one JSON object and remembers the first thing that was wrong.
class Reader {
 public:
  Reader(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  // A number in [low, high]; `fallback` below `low` means that the key must be there.
  int64_t Int(const char* key, int64_t low, int64_t high, int64_t fallback) {
    const Json* value = Find(key);
    if (value == nullptr) {
      if (fallback < low) Fail(key, "is missing");
      return fallback;
    }
    if (!value->is_number_integer()) {
      Fail(key, fmt::format("is {}, not an integer", value->dump()));
      return low;
    }
    const int64_t number = value->get<int64_t>();
    if (number < low || number > high)
      Fail(key, fmt::format("is {}; possible: {} to {}", number, low, high));
    return number;
  }
  int64_t Int(const char* key, int64_t low, int64_t high) { return Int(key, low, high, low - 1); }

  float Float(const char* key, double low, double high, double fallback = NAN) {
    const Json* value = Find(key);
    if (value == nullptr) {
      if (std::isnan(fallback)) Fail(key, "is missing");
      return static_cast<float>(fallback);
    }
    if (!value->is_number()) {
      Fail(key, fmt::format("is {}, not a number", value->dump()));
      return 0;
    }
    const double number = value->get<double>();
    if (!(number >= low && number <= high))
      Fail(key, fmt::format("is {}; possible: {} to {}", number, low, high));
    return static_cast<float>(number);
  }

  // A key that has one value in every published model.
  void Only(const char* key, const Json& expected) {
    const Json* value = Find(key);
    if (value != nullptr && *value != expected) {
      Fail(key, fmt::format("is {}; this engine knows {}", value->dump(), expected.dump()));
    }
  }

  const Json* Find(const char* key) const {
    auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  void Fail(const char* key, const std::string& what) {
    if (status_.ok())
      status_ = absl::InvalidArgumentError(fmt::format("{}: {} {}", where_, key, what));
  }
  const absl::Status& status() const { return status_; }

 private:
  const Json& object_;
  const std::string where_;
  absl::Status status_;
};

void ReadRatios(Reader& reader, ModelConfig* config) {
  const Json* list = reader.Find("compress_ratios");
  if (list == nullptr || !list->is_array())
    return reader.Fail("compress_ratios", "is missing or not a list");
  const size_t layers = static_cast<size_t>(config->num_layers);
  if (list->size() < layers ||
      list->size() > layers + static_cast<size_t>(config->num_mtp_layers)) {
    return reader.Fail("compress_ratios",
                       fmt::format("has {} entries for {} layers and {} MTP layers", list->size(),
                                   layers, config->num_mtp_layers));
  }
  for (size_t i = 0; i < list->size(); ++i) {
    const Json& ratio = (*list)[i];
    if (!ratio.is_number_integer() || ratio.get<int64_t>() < 0 || ratio.get<int64_t>() > 4096) {
      return reader.Fail("compress_ratios",
                         fmt::format("has {} for layer {}; possible: 0 to 4096", ratio.dump(), i));
    }
    config->compress_ratios.push_back(ratio.get<int64_t>());
  }
  config->compress_ratios.resize(layers + static_cast<size_t>(config->num_mtp_layers), 0);
}

void ReadRope(Reader& reader, const std::string& where, ModelConfig* config, absl::Status* nested) {
  config->rope_theta = reader.Float("rope_theta", 1.0, 1e12);
  config->compress_rope_theta = reader.Float("compress_rope_theta", 1.0, 1e12);
  const Json* scaling = reader.Find("rope_scaling");
  if (scaling == nullptr) return;
  if (!scaling->is_object()) return reader.Fail("rope_scaling", "is not an object");
  Reader yarn(*scaling, fmt::format("{}: rope_scaling", where));
  yarn.Only("type", "yarn");
  config->yarn_factor = yarn.Float("factor", 1.0, 1e6);
  config->yarn_original_context = yarn.Float("original_max_position_embeddings", 1, 1e9);
  config->yarn_beta_fast = yarn.Float("beta_fast", 1e-3, 1e6, 32);
  config->yarn_beta_slow = yarn.Float("beta_slow", 1e-3, 1e6, 1);
  *nested = yarn.status();
}

absl::Status CheckRelations(const ModelConfig& c, const std::string& where) {
  auto fail = [&](std::string what) {
    return absl::InvalidArgumentError(fmt::format("{}: {}", where, what));
  };
  if (c.rope_dim % 2 != 0 || c.rope_dim > c.head_dim) {
    return fail(fmt::format("qk_rope_head_dim {} must be even and at most head_dim {}", c.rope_dim,
                            c.head_dim));
  }
  if (c.num_heads % c.o_groups != 0) {
    return fail(fmt::format("num_attention_heads {} is not a multiple of o_groups {}", c.num_heads,
                            c.o_groups));
  }
  if (c.experts_per_token > c.num_experts) {
    return fail(fmt::format("num_experts_per_tok {} exceeds n_routed_experts {}",
                            c.experts_per_token, c.num_experts));
  }
  if (c.num_experts * c.num_layers > kMaxExpertsInAll) {
    return fail(fmt::format("n_routed_experts {} in num_hidden_layers {}; possible: {} in all",
                            c.num_experts, c.num_layers, kMaxExpertsInAll));
  }
  bool has_csa = false;
  for (int64_t layer = 0; layer < c.num_layers; ++layer)
    has_csa |= c.kind(layer) == LayerKind::kCsa;
  if (has_csa && (c.index_heads == 0 || c.index_dim < c.rope_dim || c.index_topk == 0)) {
    return fail(fmt::format(
        "layers with ratio 4 need index_n_heads, index_topk and index_head_dim >= qk_rope_head_dim "
        "(found {}, {}, {})",
        c.index_heads, c.index_topk, c.index_dim));
  }
  if (PageTokens(c) > kPageTokensMax)
    return fail("the compress_ratios have no common multiple of a usable size");
  if (c.bos_id >= c.vocab_size || c.eos_id >= c.vocab_size)
    return fail("bos_token_id or eos_token_id >= vocab_size");
  return absl::OkStatus();
}

}  // namespace

int64_t PageTokens(const ModelConfig& config) {
  int64_t tokens = 128;
  for (int64_t ratio : config.compress_ratios) {
    if (ratio > 0) tokens = std::lcm(tokens, ratio);
    if (tokens > kPageTokensMax) break;
  }
  return tokens;
}

absl::StatusOr<ModelConfig> ParseConfig(std::string_view json, const std::string& where) {
  const Json root = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object())
    return absl::InvalidArgumentError(fmt::format("{}: not a JSON object", where));
  Reader reader(root, where);
  reader.Only("model_type", "deepseek_v4");
  reader.Only("scoring_func", "sqrtsoftplus");
  reader.Only("topk_method", "noaux_tc");
  reader.Only("hidden_act", "silu");
  reader.Only("n_shared_experts", 1);
  reader.Only("num_key_value_heads", 1);
  reader.Only("tie_word_embeddings", false);
  reader.Only("attention_bias", false);
  constexpr int64_t kMax = kMaxDimension;
  ModelConfig c;
  c.vocab_size = reader.Int("vocab_size", 1, kMax);
  c.hidden_size = reader.Int("hidden_size", 1, kMax);
  c.num_layers = reader.Int("num_hidden_layers", 1, 4096);
  c.num_mtp_layers = reader.Int("num_nextn_predict_layers", 0, 16, 0);
  c.num_heads = reader.Int("num_attention_heads", 1, 65536);
  c.head_dim = reader.Int("head_dim", 1, 65536);
  c.rope_dim = reader.Int("qk_rope_head_dim", 2, 65536);
  c.q_lora_rank = reader.Int("q_lora_rank", 1, kMax);
  c.o_lora_rank = reader.Int("o_lora_rank", 1, kMax);
  c.o_groups = reader.Int("o_groups", 1, 65536);
  c.window = reader.Int("sliding_window", 1, kMaxWindow);
  ReadRatios(reader, &c);
  absl::Status nested;
  ReadRope(reader, where, &c, &nested);
  c.max_context = reader.Int("max_position_embeddings", 1, int64_t{1} << 31);
  c.index_heads = reader.Int("index_n_heads", 0, 65536, 0);
  c.index_dim = reader.Int("index_head_dim", 0, 65536, 0);
  c.index_topk = reader.Int("index_topk", 0, kMax, 0);
  c.num_experts = reader.Int("n_routed_experts", 1, kMaxExperts);
  c.experts_per_token = reader.Int("num_experts_per_tok", 1, 1024);
  c.expert_width = reader.Int("moe_intermediate_size", 1, kMax);
  c.num_hash_layers = reader.Int("num_hash_layers", 0, 4096, 0);
  if (const Json* normalise = reader.Find("norm_topk_prob");
      normalise != nullptr && normalise->is_boolean()) {
    c.normalise_weights = normalise->get<bool>();
  }
  c.routed_scale = reader.Float("routed_scaling_factor", 0, 1e6, 1);
  c.swiglu_limit = reader.Float("swiglu_limit", 1e-6, 1e30);
  c.hc_streams = reader.Int("hc_mult", 1, kMaxStreams);
  c.hc_iterations = reader.Int("hc_sinkhorn_iters", 1, 1000);
  c.hc_eps = reader.Float("hc_eps", 0, 1);
  c.norm_eps = reader.Float("rms_norm_eps", 0, 1);
  c.bos_id = static_cast<int32_t>(reader.Int("bos_token_id", 0, kMax, 0));
  c.eos_id = static_cast<int32_t>(reader.Int("eos_token_id", 0, kMax, 1));
  RETURN_IF_ERROR(reader.status());
  RETURN_IF_ERROR(nested);
  RETURN_IF_ERROR(CheckRelations(c, where));
  return c;
}

absl::StatusOr<ModelConfig> LoadConfig(const std::string& directory) {
  const std::string path = directory + "/config.json";
  ASSIGN_OR_RETURN(const std::string text, base::ReadFile(path, kConfigBytesMax));
  return ParseConfig(text, path);
}

}  // namespace reprise::engine
