#include "engine/inventory.h"

#include <fmt/format.h>

namespace reprise::engine {
namespace {

class Inventory {
 public:
  explicit Inventory(const ModelConfig& config) : c_(config) {}

  std::vector<TensorSpec> Build() {
    Add("embed.weight", {c_.vocab_size, c_.hidden_size});
    for (int64_t layer = 0; layer < c_.num_layers; ++layer)
      AddLayer(layer, fmt::format("layers.{}.", layer));
    Add("hc_head_fn", {c_.hc_streams, c_.hc_streams * c_.hidden_size});
    Add("hc_head_base", {c_.hc_streams});
    Add("hc_head_scale", {1});
    Add("norm.weight", {c_.hidden_size});
    Add("head.weight", {c_.vocab_size, c_.hidden_size});
    return std::move(specs_);
  }

  std::vector<TensorSpec> BuildMtp(int64_t block) {
    const std::string prefix = fmt::format("mtp.{}.", block);
    Add(prefix + "enorm.weight", {c_.hidden_size});
    Add(prefix + "hnorm.weight", {c_.hidden_size});
    Add(prefix + "e_proj.weight", {c_.hidden_size, c_.hidden_size}, Kind::kLinear);
    Add(prefix + "h_proj.weight", {c_.hidden_size, c_.hidden_size}, Kind::kLinear);
    AddLayer(c_.num_layers + block, prefix);
    Add(prefix + "hc_head_fn", {c_.hc_streams, c_.hc_streams * c_.hidden_size});
    Add(prefix + "hc_head_base", {c_.hc_streams});
    Add(prefix + "hc_head_scale", {1});
    Add(prefix + "norm.weight", {c_.hidden_size});
    return std::move(specs_);
  }

 private:
  using Kind = TensorSpec::Kind;

  void Add(std::string name, std::vector<int64_t> shape, Kind kind = Kind::kFloat) {
    specs_.push_back({std::move(name), std::move(shape), kind});
  }

  void AddLayer(int64_t layer, const std::string& prefix) {
    AddHyperConnection(prefix + "hc_attn_");
    Add(prefix + "attn_norm.weight", {c_.hidden_size});
    AddAttention(layer, prefix + "attn.");
    AddHyperConnection(prefix + "hc_ffn_");
    Add(prefix + "ffn_norm.weight", {c_.hidden_size});
    AddExperts(layer, prefix + "ffn.");
  }

  void AddHyperConnection(const std::string& prefix) {
    Add(prefix + "fn", {c_.hc_rows(), c_.hc_streams * c_.hidden_size});
    Add(prefix + "base", {c_.hc_rows()});
    Add(prefix + "scale", {3});
  }

  void AddAttention(int64_t layer, const std::string& prefix) {
    const int64_t q = c_.num_heads * c_.head_dim;
    Add(prefix + "wq_a.weight", {c_.q_lora_rank, c_.hidden_size}, Kind::kLinear);
    Add(prefix + "q_norm.weight", {c_.q_lora_rank});
    Add(prefix + "wq_b.weight", {q, c_.q_lora_rank}, Kind::kLinear);
    Add(prefix + "wkv.weight", {c_.head_dim, c_.hidden_size}, Kind::kLinear);
    Add(prefix + "kv_norm.weight", {c_.head_dim});
    Add(prefix + "attn_sink", {c_.num_heads});
    if (c_.kind(layer) != LayerKind::kWindow)
      AddCompressor(layer, prefix + "compressor.", c_.head_dim);
    if (c_.kind(layer) == LayerKind::kCsa) {
      Add(prefix + "indexer.wq_b.weight", {c_.index_heads * c_.index_dim, c_.q_lora_rank},
          Kind::kLinear);
      Add(prefix + "indexer.weights_proj.weight", {c_.index_heads, c_.hidden_size});
      AddCompressor(layer, prefix + "indexer.compressor.", c_.index_dim);
    }
    Add(prefix + "wo_a.weight", {c_.o_groups * c_.o_lora_rank, q / c_.o_groups}, Kind::kLinear);
    Add(prefix + "wo_b.weight", {c_.hidden_size, c_.o_groups * c_.o_lora_rank}, Kind::kLinear);
  }

  void AddCompressor(int64_t layer, const std::string& prefix, int64_t width) {
    const int64_t columns = c_.compressor_columns(layer, width);
    Add(prefix + "wkv.weight", {columns, c_.hidden_size});
    Add(prefix + "wgate.weight", {columns, c_.hidden_size});
    Add(prefix + "ape", {c_.ratio(layer), columns});
    Add(prefix + "norm.weight", {width});
  }

  void AddExperts(int64_t layer, const std::string& prefix) {
    Add(prefix + "gate.weight", {c_.num_experts, c_.hidden_size});
    if (c_.hashed(layer)) {
      Add(prefix + "gate.tid2eid", {c_.vocab_size, c_.experts_per_token}, Kind::kTable);
    } else {
      Add(prefix + "gate.bias", {c_.num_experts});
    }
    for (int64_t e = 0; e < c_.num_experts; ++e)
      AddExpert(fmt::format("{}experts.{}.", prefix, e), Kind::kExpert);
    AddExpert(prefix + "shared_experts.", Kind::kLinear);
  }

  void AddExpert(const std::string& prefix, Kind kind) {
    Add(prefix + "w1.weight", {c_.expert_width, c_.hidden_size}, kind);
    Add(prefix + "w2.weight", {c_.hidden_size, c_.expert_width}, kind);
    Add(prefix + "w3.weight", {c_.expert_width, c_.hidden_size}, kind);
  }

  const ModelConfig& c_;
  std::vector<TensorSpec> specs_;
};

}  // namespace

std::vector<TensorSpec> TensorInventory(const ModelConfig& config) {
  return Inventory(config).Build();
}

std::vector<TensorSpec> MtpInventory(const ModelConfig& config, int64_t block) {
  return Inventory(config).BuildMtp(block);
}

std::string ScaleName(std::string_view weight) {
  weight.remove_suffix(std::string_view("weight").size());
  return std::string(weight) + "scale";
}

}  // namespace reprise::engine
