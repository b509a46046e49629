// What a sequence keeps of its tokens: one fixed block (windows and the uncompressed tails of the
// compressors of all layers) and pages of compressed entries, each page for the same number of
// tokens in every layer. float32.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/config.h"

namespace reprise::engine {

// Where things lie in the fixed block and in a page; one per model. Offsets count floats, -1 is
// absent.
struct KvLayout {
  explicit KvLayout(const ModelConfig& config);

  struct Layer {
    int64_t ratio = 0;
    int64_t tail_rows = 0;                        // tokens that the tail holds
    int64_t columns = 0, index_columns = 0;       // channels of a tail row
    int64_t window = 0;                           // [W, d] in the block
    int64_t values = -1, gates = -1;              // [tail_rows, columns] in the block
    int64_t index_values = -1, index_gates = -1;  // [tail_rows, index_columns] in the block
    int64_t entries = -1;                         // [page_tokens / ratio, d] in a page
    int64_t index_keys = -1;                      // [page_tokens / ratio, index_dim] in a page
  };
  std::vector<Layer> layers;
  int64_t head_dim, index_dim, window;
  int64_t block_floats = 0;
  int64_t page_floats = 0;
  int64_t page_tokens = 0;  // a multiple of 128 and of every ratio
};

class KvState {
 public:
  explicit KvState(const KvLayout* layout);  // outlives this

  // Tokens that are in it. Set after the tokens' last layer.
  int64_t length() const { return length_; }
  void set_length(int64_t length) { length_ = length; }
  int64_t memory_bytes() const;
  // Makes room for the compressed entries of `tokens` tokens.
  void Reserve(int64_t tokens);

  // Rows of token `position`, in rings.
  float* Window(int64_t layer, int64_t position) {
    const KvLayout::Layer& at = layout_->layers[layer];
    return block_.data() + at.window + position % layout_->window * layout_->head_dim;
  }
  float* Values(int64_t layer, int64_t position, bool index) {
    const KvLayout::Layer& at = layout_->layers[layer];
    return TailRow(index ? at.index_values : at.values, at, position, index);
  }
  float* Gates(int64_t layer, int64_t position, bool index) {
    const KvLayout::Layer& at = layout_->layers[layer];
    return TailRow(index ? at.index_gates : at.gates, at, position, index);
  }
  // Compressed entry `w`, and its indexer key. REQUIRES: reserved.
  float* Entry(int64_t layer, int64_t w) {
    const KvLayout::Layer& at = layout_->layers[layer];
    const int64_t per_page = layout_->page_tokens / at.ratio;
    return pages_[w / per_page].get() + at.entries + w % per_page * layout_->head_dim;
  }
  float* IndexKey(int64_t layer, int64_t w) {
    const KvLayout::Layer& at = layout_->layers[layer];
    const int64_t per_page = layout_->page_tokens / at.ratio;
    return pages_[w / per_page].get() + at.index_keys + w % per_page * layout_->index_dim;
  }
  const KvLayout& layout() const { return *layout_; }

 private:
  float* TailRow(int64_t offset, const KvLayout::Layer& at, int64_t position, bool index) {
    return block_.data() + offset +
           position % at.tail_rows * (index ? at.index_columns : at.columns);
  }

  const KvLayout* const layout_;
  int64_t length_ = 0;
  std::vector<float> block_;
  std::vector<std::unique_ptr<float[]>> pages_;
};

}  // namespace reprise::engine
