#include "engine/kv_state.h"

#include <utility>

namespace reprise::engine {

KvLayout::KvLayout(const ModelConfig& config)
    : head_dim(config.head_dim), index_dim(config.index_dim), window(config.window) {
  page_tokens = PageTokens(config);
  auto in_block = [&](int64_t floats) {
    return std::exchange(block_floats, block_floats + floats);
  };
  auto in_page = [&](int64_t floats) { return std::exchange(page_floats, page_floats + floats); };
  for (int64_t i = 0; i < config.num_layers; ++i) {
    Layer layer;
    layer.ratio = config.ratio(i);
    layer.window = in_block(window * head_dim);
    if (config.kind(i) != LayerKind::kWindow) {
      const bool overlaps = config.kind(i) == LayerKind::kCsa;
      layer.tail_rows = layer.ratio * (overlaps ? 2 : 1);
      layer.columns = config.compressor_columns(i, head_dim);
      layer.values = in_block(layer.tail_rows * layer.columns);
      layer.gates = in_block(layer.tail_rows * layer.columns);
      layer.entries = in_page(page_tokens / layer.ratio * head_dim);
      if (overlaps) {
        layer.index_columns = config.compressor_columns(i, index_dim);
        layer.index_values = in_block(layer.tail_rows * layer.index_columns);
        layer.index_gates = in_block(layer.tail_rows * layer.index_columns);
        layer.index_keys = in_page(page_tokens / layer.ratio * index_dim);
      }
    }
    layers.push_back(layer);
  }
}

KvState::KvState(const KvLayout* layout)
    : layout_(layout), block_(static_cast<size_t>(layout->block_floats)) {}

int64_t KvState::memory_bytes() const {
  const int64_t floats =
      layout_->block_floats + static_cast<int64_t>(pages_.size()) * layout_->page_floats;
  return floats * static_cast<int64_t>(sizeof(float));
}

void KvState::Reserve(int64_t tokens) {
  if (layout_->page_floats == 0) return;
  while (static_cast<int64_t>(pages_.size()) * layout_->page_tokens < tokens) {
    pages_.push_back(std::make_unique<float[]>(static_cast<size_t>(layout_->page_floats)));
  }
}

}  // namespace reprise::engine
