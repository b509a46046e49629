#include "engine/tensor_names.h"

#include <array>
#include <optional>
#include <string_view>

#include <fmt/format.h>

namespace reprise::engine {
namespace {

struct Rename {
  std::string_view from, to;
};

// Below "model.layers.<l>."; a name is replaced up to a dot or its end. Longer names come first.
constexpr std::array kLayerNames = {
    Rename{"input_layernorm", "attn_norm"},
    Rename{"post_attention_layernorm", "ffn_norm"},
    Rename{"attn_hc.fn", "hc_attn_fn"},
    Rename{"attn_hc.base", "hc_attn_base"},
    Rename{"attn_hc.scale", "hc_attn_scale"},
    Rename{"ffn_hc.fn", "hc_ffn_fn"},
    Rename{"ffn_hc.base", "hc_ffn_base"},
    Rename{"ffn_hc.scale", "hc_ffn_scale"},
    Rename{"self_attn.q_a_proj", "attn.wq_a"},
    Rename{"self_attn.q_b_proj", "attn.wq_b"},
    Rename{"self_attn.kv_proj", "attn.wkv"},
    Rename{"self_attn.o_a_proj", "attn.wo_a"},
    Rename{"self_attn.o_b_proj", "attn.wo_b"},
    Rename{"self_attn.q_a_norm", "attn.q_norm"},
    Rename{"self_attn.kv_norm", "attn.kv_norm"},
    Rename{"self_attn.sinks", "attn.attn_sink"},
    Rename{"self_attn.compressor.indexer.q_b_proj", "attn.indexer.wq_b"},
    Rename{"self_attn.compressor.indexer.scorer.weights_proj", "attn.indexer.weights_proj"},
    Rename{"self_attn.compressor.indexer.weights_proj", "attn.indexer.weights_proj"},
    Rename{"self_attn.compressor.indexer.kv_proj", "attn.indexer.compressor.wkv"},
    Rename{"self_attn.compressor.indexer.gate_proj", "attn.indexer.compressor.wgate"},
    Rename{"self_attn.compressor.indexer.position_bias", "attn.indexer.compressor.ape"},
    Rename{"self_attn.compressor.indexer.kv_norm", "attn.indexer.compressor.norm"},
    Rename{"self_attn.compressor.kv_proj", "attn.compressor.wkv"},
    Rename{"self_attn.compressor.gate_proj", "attn.compressor.wgate"},
    Rename{"self_attn.compressor.position_bias", "attn.compressor.ape"},
    Rename{"self_attn.compressor.kv_norm", "attn.compressor.norm"},
    Rename{"mlp.gate.e_score_correction_bias", "ffn.gate.bias"},
    Rename{"mlp.gate", "ffn.gate"},
    Rename{"mlp.shared_experts.gate_proj", "ffn.shared_experts.w1"},
    Rename{"mlp.shared_experts.up_proj", "ffn.shared_experts.w3"},
    Rename{"mlp.shared_experts.down_proj", "ffn.shared_experts.w2"},
};

constexpr std::array kGlobalNames = {
    Rename{"model.embed_tokens", "embed"},
    Rename{"lm_head", "head"},
    Rename{"model.norm", "norm"},
    Rename{"model.hc_head.hc_fn", "hc_head_fn"},
    Rename{"model.hc_head.hc_base", "hc_head_base"},
    Rename{"model.hc_head.hc_scale", "hc_head_scale"},
};

constexpr std::string_view kLayerPrefix = "model.layers.";
constexpr std::string_view kMtpPrefix = "mtp.";

// `back`: from the official name.
template <size_t n>
std::optional<std::string> Renamed(std::string_view name, const std::array<Rename, n>& table,
                                   bool back = false) {
  for (const Rename& rename : table) {
    const std::string_view from = back ? rename.to : rename.from;
    if (!name.starts_with(from)) continue;
    const std::string_view rest = name.substr(from.size());
    if (rest.empty() || rest[0] == '.')
      return fmt::format("{}{}", back ? rename.from : rename.to, rest);
  }
  return std::nullopt;
}

// Re-uploads call the scale of "x.weight" "x.weight_scale_inv"; the official files "x.scale".
std::string OfficialScale(std::string name) {
  constexpr std::string_view kTheirs = ".weight_scale_inv";
  if (name.ends_with(kTheirs)) name = name.substr(0, name.size() - kTheirs.size()) + ".scale";
  return name;
}

bool CopyForMtp(std::string_view name) {
  return name.starts_with(kMtpPrefix) &&
         (name.find("emb") != std::string_view::npos || name.ends_with(".head.weight"));
}

// The parts of a [E, rows, columns] stack: `parts` names of equal shares of the rows, in order.
absl::Status CutStack(const std::string& name, const TensorView& view, const std::string& prefix,
                      const std::vector<std::string_view>& parts, std::string_view leaf,
                      std::vector<std::pair<std::string, TensorView>>* out) {
  const int64_t count = static_cast<int64_t>(parts.size());
  if (view.shape.size() != 3 || view.shape[1] % count != 0) {
    return absl::InvalidArgumentError(
        fmt::format("tensor {}: expected a stack of shape [experts, {}rows, columns], found {}",
                    name, count == 2 ? "2 * " : "", ShapeText(view.shape)));
  }
  const int64_t experts = view.shape[0], rows = view.shape[1] / count;
  const uint64_t bytes = experts == 0 ? 0 : view.bytes / static_cast<uint64_t>(experts * count);
  const uint8_t* data = view.data;
  for (int64_t e = 0; e < experts; ++e) {
    for (std::string_view part : parts) {
      out->emplace_back(fmt::format("{}ffn.experts.{}.{}.{}", prefix, e, part, leaf),
                        TensorView{view.dtype, {rows, view.shape[2]}, data, bytes});
      data += bytes;
    }
  }
  return absl::OkStatus();
}

absl::Status LayerTensor(const std::string& name, std::string_view prefix, std::string_view rest,
                         const TensorView& view,
                         std::vector<std::pair<std::string, TensorView>>* out) {
  const std::string official(prefix);
  constexpr std::string_view kGateUp = "mlp.experts.gate_up_proj", kDown = "mlp.experts.down_proj";
  for (std::string_view stack : {kGateUp, kDown}) {
    if (!rest.starts_with(stack)) continue;
    const std::string_view suffix = rest.substr(stack.size());
    const bool scale = suffix == "_scale_inv" || suffix == "_scale";
    if (!scale && !suffix.empty()) continue;
    const std::vector<std::string_view> parts = stack == kDown
                                                    ? std::vector<std::string_view>{"w2"}
                                                    : std::vector<std::string_view>{"w1", "w3"};
    return CutStack(name, view, official, parts, scale ? "scale" : "weight", out);
  }
  const std::optional<std::string> renamed = Renamed(rest, kLayerNames);
  out->emplace_back(renamed ? OfficialScale(official + *renamed) : name, view);
  return absl::OkStatus();
}

}  // namespace

absl::Status OfficialTensors(const std::string& name, const TensorView& view,
                             std::vector<std::pair<std::string, TensorView>>* out) {
  if (CopyForMtp(name)) return absl::OkStatus();
  const std::string_view text = name;
  if (text.starts_with(kLayerPrefix)) {
    const size_t dot = text.find('.', kLayerPrefix.size());
    if (dot != std::string_view::npos) {
      constexpr size_t kModel = std::string_view("model.").size();
      return LayerTensor(name, text.substr(kModel, dot + 1 - kModel), text.substr(dot + 1), view,
                         out);
    }
  }
  const std::optional<std::string> renamed = Renamed(text, kGlobalNames);
  out->emplace_back(renamed ? *renamed : OfficialScale(name), view);
  return absl::OkStatus();
}

std::string TransformersName(std::string_view name) {
  if (name.starts_with(kMtpPrefix)) return "";
  constexpr std::string_view kLayers = "layers.", kExperts = "ffn.experts.", kScale = ".scale";
  std::string theirs(name);
  if (name.starts_with(kLayers)) {
    const size_t dot = name.find('.', kLayers.size()) + 1;
    const std::string prefix = fmt::format("model.{}", name.substr(0, dot));
    const std::string_view rest = name.substr(dot);
    if (rest.starts_with(kExperts)) {
      const bool down = rest.find(".w2.") != std::string_view::npos;
      return fmt::format("{}mlp.experts.{}_proj{}", prefix, down ? "down" : "gate_up",
                         rest.ends_with(kScale) ? "_scale_inv" : "");
    }
    theirs = prefix + Renamed(rest, kLayerNames, /*back=*/true).value_or(std::string(rest));
  } else if (const auto renamed = Renamed(name, kGlobalNames, /*back=*/true)) {
    theirs = *renamed;
  }
  if (theirs.ends_with("_proj.scale"))
    theirs = theirs.substr(0, theirs.size() - kScale.size()) + ".weight_scale_inv";
  return theirs;
}

}  // namespace reprise::engine
