// config.json of a DeepSeek-V4 checkpoint: every dimension of the model, checked before anything is
// allocated. Source: spec of the published config files (V4-Flash, V4-Pro); keys keep their
// official meaning.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace reprise::engine {

// What a layer attends to beside its window of recent tokens.
enum class LayerKind {
  kWindow,  // ratio 0: nothing
  kCsa,     // ratio 4: compressed blocks that overlap, the best chosen by an indexer
  kHca,     // any other ratio: all compressed blocks
};
inline constexpr int64_t kCsaRatio = 4;
// The product and sum limits below keep every size of a well-formed config far from overflow.
inline constexpr int64_t kMaxDimension = 1 << 24;

struct ModelConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  int64_t rope_dim = 0;  // trailing dims of a head that rotate
  int64_t q_lora_rank = 0;
  int64_t o_lora_rank = 0;
  int64_t o_groups = 0;
  int64_t window = 0;
  // [num_layers + num_mtp_layers]; the MTP blocks are layers behind the last, 0 where the file says
  // nothing.
  std::vector<int64_t> compress_ratios;
  float rope_theta = 0;
  float compress_rope_theta = 0;
  float yarn_factor = 1;  // of the compress table
  float yarn_original_context = 65536;
  float yarn_beta_fast = 32;
  float yarn_beta_slow = 1;
  int64_t max_context = 0;
  int64_t index_heads = 0;
  int64_t index_dim = 0;
  int64_t index_topk = 0;
  int64_t num_experts = 0;
  int64_t experts_per_token = 0;
  int64_t expert_width = 0;
  int64_t num_hash_layers = 0;
  bool normalise_weights = true;
  float routed_scale = 1;
  float swiglu_limit = 0;
  int64_t hc_streams = 0;
  int64_t hc_iterations = 0;
  float hc_eps = 0;
  float norm_eps = 0;
  int64_t num_mtp_layers = 0;
  int32_t bos_id = 0;
  int32_t eos_id = 1;

  bool operator==(const ModelConfig&) const = default;

  int64_t ratio(int64_t layer) const { return compress_ratios[static_cast<size_t>(layer)]; }
  LayerKind kind(int64_t layer) const {
    return ratio(layer) == 0           ? LayerKind::kWindow
           : ratio(layer) == kCsaRatio ? LayerKind::kCsa
                                       : LayerKind::kHca;
  }
  bool hashed(int64_t layer) const { return layer < num_hash_layers; }
  // Rows of the hyper-connection projections: read gates, write gates, mixing matrix.
  int64_t hc_rows() const { return (2 + hc_streams) * hc_streams; }
  // Channels of a compressor's projections for entries of `width` channels.
  int64_t compressor_columns(int64_t layer, int64_t width) const {
    return kind(layer) == LayerKind::kCsa ? 2 * width : width;
  }
};

// `where` names the file in errors. INVALID_ARGUMENT names the key, what was found and what is
// possible.
absl::StatusOr<ModelConfig> ParseConfig(std::string_view json, const std::string& where);
absl::StatusOr<ModelConfig> LoadConfig(const std::string& directory);

// Tokens that one page of compressed entries stands for: the least common multiple of 128 and every
// ratio.
int64_t PageTokens(const ModelConfig& config);
inline constexpr int64_t kPageTokensMax = 1 << 20;

}  // namespace reprise::engine
