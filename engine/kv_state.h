// What a sequence keeps of its tokens: one fixed block (windows and the uncompressed tails of the
// compressors of all layers) and pages of compressed entries, each page for the same number of
// tokens in every layer. The block is float32; entries are too, or packed where their values were
// quantised, which loses nothing. Copies share both until one of them writes: a copy costs nothing
// but the block it writes next.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/config.h"

namespace reprise::engine {

// The newest tokens that Rewind can take back: rings hold so many rows more than a query needs.
inline constexpr int64_t kRewindTokens = 8;

// Where things lie in the fixed block and in a page; one per model. Offsets count floats in the
// block and bytes in a page, -1 is absent.
struct KvLayout {
  // `mtp_blocks`: MTP blocks that keep a window of their own; they are layers behind the last.
  // `packed`: entries are FP8 and indexer keys FP4 (kernels/cpu/quantise.h), for reference
  // numerics.
  KvLayout(const ModelConfig& config, int64_t mtp_blocks, bool packed);

  struct Layer {
    int64_t ratio = 0;
    int64_t tail_rows = 0;                        // tokens that the tail holds
    int64_t columns = 0, index_columns = 0;       // channels of a tail row
    int64_t window = 0;                           // [window_rows, d] in the block
    int64_t values = -1, gates = -1;              // [tail_rows, columns] in the block
    int64_t index_values = -1, index_gates = -1;  // [tail_rows, index_columns] in the block
    int64_t entries = -1;                         // [page_tokens / ratio] in a page
    int64_t index_keys = -1;                      // [page_tokens / ratio] in a page
  };
  std::vector<Layer> layers;
  int64_t head_dim, rope_dim, index_dim;
  bool packed;
  int64_t entry_bytes, key_bytes;  // of one entry, of one indexer key
  int64_t window_rows;             // the window and kRewindTokens
  int64_t residual = -1;           // [P, D] of the last token in the block, for MTP blocks
  int64_t residual_floats = 0;
  int64_t block_floats = 0;
  int64_t page_bytes = 0;
  int64_t page_tokens = 0;  // a multiple of 128 and of every ratio

  // Bytes of a sequence of `tokens` tokens that shares nothing.
  int64_t Bytes(int64_t tokens) const;
  // Pages of a sequence of `tokens` tokens.
  int64_t Pages(int64_t tokens) const;

  // Bytes of all blocks and pages of this layout that exist, shared ones once.
  mutable std::atomic<int64_t> bytes_in_use{0};
};

// Zeroed bytes, counted in their layout.
class KvBuffer {
 public:
  KvBuffer(const KvLayout* layout, int64_t bytes);
  KvBuffer(const KvBuffer& other);
  KvBuffer& operator=(const KvBuffer&) = delete;
  ~KvBuffer();
  uint8_t* bytes() { return data_.get(); }
  const uint8_t* bytes() const { return data_.get(); }
  // The same as floats; new[] aligns for them.
  float* floats() { return reinterpret_cast<float*>(data_.get()); }

 private:
  const KvLayout* const layout_;
  const int64_t size_;
  const std::unique_ptr<uint8_t[]> data_;
};

class KvState {
 public:
  explicit KvState(const KvLayout* layout);  // outlives this

  // Tokens that are in it. Set after the tokens' last layer.
  int64_t length() const { return length_; }
  void set_length(int64_t length);
  // Positions that the MTP block has seen, each with the token after it: `length`, or one less
  // while that token is unknown.
  int64_t mtp_length() const { return mtp_length_; }
  void set_mtp_length(int64_t length) { mtp_length_ = length; }
  // Of this state alone, with what it shares.
  int64_t memory_bytes() const { return layout_->Bytes(length_); }

  // Makes room for what `tokens` tokens write, in memory that no copy shares. Before every write;
  // not at the same time as on a copy, unless neither shares any more.
  void Reserve(int64_t tokens);
  // True when Rewind(length) is possible.
  bool CanRewind(int64_t length) const {
    return length >= 0 && length <= length_ && length >= highest_ - kRewindTokens;
  }
  // Forgets the tokens from `length` on. REQUIRES: CanRewind(length).
  void Rewind(int64_t length);

  // Rows of token `position`, in rings.
  float* Window(int64_t layer, int64_t position) {
    const KvLayout::Layer& at = layout_->layers[layer];
    return block_->floats() + at.window + position % layout_->window_rows * layout_->head_dim;
  }
  float* Values(int64_t layer, int64_t position, bool index) {
    const KvLayout::Layer& at = layout_->layers[layer];
    return TailRow(index ? at.index_values : at.values, at, position, index);
  }
  float* Gates(int64_t layer, int64_t position, bool index) {
    const KvLayout::Layer& at = layout_->layers[layer];
    return TailRow(index ? at.index_gates : at.gates, at, position, index);
  }
  // Compressed entry `w` [head_dim], and its indexer key [index_dim]. REQUIRES: reserved.
  void WriteEntry(int64_t layer, int64_t w, const float* entry);
  void WriteIndexKey(int64_t layer, int64_t w, const float* key);
  // The entry in place, or taken apart into scratch[head_dim] where the layout packs.
  const float* ReadEntry(int64_t layer, int64_t w, float* scratch) const;
  // `count` keys from `w` on, one after the other, as above; all in one page.
  const float* ReadIndexKeys(int64_t layer, int64_t w, int64_t count, float* scratch) const;
  // The residual streams of the last token. REQUIRES: the layout has them.
  float* Residual() { return block_->floats() + layout_->residual; }
  const KvLayout& layout() const { return *layout_; }

  // The entries of the first `tokens` tokens are there already: from now on they are not written.
  void KnowEntries(int64_t tokens) { known_ = tokens; }

  // As they are in memory; valid until the next Reserve.
  std::string_view BlockBytes() const;
  std::string_view PageBytes(int64_t page) const;
  // All of it as bytes (engine/FORMAT.md), and back; false when the bytes do not fit the layout.
  void AppendTo(std::string* out) const;
  bool ReadFrom(std::string_view bytes);

 private:
  float* TailRow(int64_t offset, const KvLayout::Layer& at, int64_t position, bool index) {
    return block_->floats() + offset +
           position % at.tail_rows * (index ? at.index_columns : at.columns);
  }

  // Entry `w` was there before.
  bool Known(int64_t layer, int64_t w) const {
    return (w + 1) * layout_->layers[layer].ratio <= known_;
  }
  uint8_t* EntryAt(int64_t layer, int64_t w) const {
    const KvLayout::Layer& at = layout_->layers[layer];
    const int64_t per_page = layout_->page_tokens / at.ratio;
    return pages_[w / per_page]->bytes() + at.entries + w % per_page * layout_->entry_bytes;
  }
  uint8_t* IndexKeyAt(int64_t layer, int64_t w) const {
    const KvLayout::Layer& at = layout_->layers[layer];
    const int64_t per_page = layout_->page_tokens / at.ratio;
    return pages_[w / per_page]->bytes() + at.index_keys + w % per_page * layout_->key_bytes;
  }

  const KvLayout* layout_;
  int64_t length_ = 0;
  int64_t highest_ = 0;  // length that was ever reached: rings hold its newest rows
  int64_t mtp_length_ = 0;
  int64_t known_ = 0;
  std::shared_ptr<KvBuffer> block_;
  std::vector<std::shared_ptr<KvBuffer>> pages_;
};

}  // namespace reprise::engine
