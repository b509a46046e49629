#include "engine/model_info.h"

#include <functional>
#include <numeric>

#include "base/status_macros.h"
#include "engine/checkpoint.h"
#include "engine/inventory.h"
#include "engine/kv_state.h"

namespace reprise::engine {
namespace {

int64_t Elements(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

void Count(const TensorView& view, ModelInfo::Stored* stored) {
  ++stored->tensors;
  stored->elements += Elements(view.shape);
  stored->bytes += static_cast<int64_t>(view.bytes);
}

}  // namespace

absl::StatusOr<ModelInfo> ReadModelInfo(const std::string& directory) {
  ModelInfo info;
  ASSIGN_OR_RETURN(info.config, LoadConfig(directory));
  const ModelConfig& c = info.config;
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(directory));
  for (const auto& file : checkpoint->files()) {
    for (const auto& [name, view] : file->tensors()) {
      Count(view, &info.by_dtype[view.dtype]);
      Count(view, &info.total);
    }
  }
  info.mtp_blocks = checkpoint->MtpBlocks(c);
  info.quantised = checkpoint->quantised();
  int64_t routed = 0;
  for (const TensorSpec& spec : TensorInventory(c)) {
    if (spec.kind == TensorSpec::Kind::kTable) continue;
    info.parameters += Elements(spec.shape);
    if (spec.name.find(".ffn.experts.") != std::string::npos) routed += Elements(spec.shape);
  }
  info.active_parameters = info.parameters - routed + routed / c.num_experts * c.experts_per_token;
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    const LayerKind kind = c.kind(layer);
    ++(kind == LayerKind::kWindow ? info.window_layers
       : kind == LayerKind::kCsa  ? info.csa_layers
                                  : info.hca_layers);
  }
  const KvLayout layout(c, /*mtp_blocks=*/0, info.quantised);
  info.kv_fixed_bytes = layout.block_floats * static_cast<int64_t>(sizeof(float));
  info.kv_page_bytes = layout.page_bytes;
  info.kv_page_tokens = layout.page_tokens;
  info.usable = checkpoint->CheckAgainst(c);
  return info;
}

}  // namespace reprise::engine
