#include "engine/kv_state.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cpu/quantise.h"

namespace reprise::engine {
namespace {

namespace cpu = kernels::cpu;

constexpr int64_t kFloatBytes = sizeof(float);

std::string_view View(const KvBuffer& buffer, int64_t bytes) {
  return {reinterpret_cast<const char*>(buffer.bytes()), static_cast<size_t>(bytes)};
}

}  // namespace

KvLayout::KvLayout(const ModelConfig& config, int64_t mtp_blocks, bool packed)
    : head_dim(config.head_dim),
      rope_dim(config.rope_dim),
      index_dim(config.index_dim),
      packed(packed),
      entry_bytes(packed ? cpu::PackedEntryBytes(head_dim, rope_dim) : head_dim * kFloatBytes),
      key_bytes(packed ? cpu::PackedKeyBytes(index_dim) : index_dim * kFloatBytes),
      window_rows(config.window + kRewindTokens) {
  page_tokens = PageTokens(config);
  auto in_block = [&](int64_t floats) {
    return std::exchange(block_floats, block_floats + floats);
  };
  auto in_page = [&](int64_t bytes) { return std::exchange(page_bytes, page_bytes + bytes); };
  for (int64_t i = 0; i < config.num_layers + mtp_blocks; ++i) {
    Layer layer;
    layer.ratio = config.ratio(i);
    layer.window = in_block(window_rows * head_dim);
    if (config.kind(i) != LayerKind::kWindow) {
      const bool overlaps = config.kind(i) == LayerKind::kCsa;
      layer.tail_rows = layer.ratio * (overlaps ? 2 : 1) + kRewindTokens;
      layer.columns = config.compressor_columns(i, head_dim);
      layer.values = in_block(layer.tail_rows * layer.columns);
      layer.gates = in_block(layer.tail_rows * layer.columns);
      layer.entries = in_page(page_tokens / layer.ratio * entry_bytes);
      if (overlaps) {
        layer.index_columns = config.compressor_columns(i, index_dim);
        layer.index_values = in_block(layer.tail_rows * layer.index_columns);
        layer.index_gates = in_block(layer.tail_rows * layer.index_columns);
        layer.index_keys = in_page(page_tokens / layer.ratio * key_bytes);
      }
    }
    layers.push_back(layer);
  }
  if (mtp_blocks > 0) {
    residual_floats = config.hc_streams * config.hidden_size;
    residual = in_block(residual_floats);
  }
}

int64_t KvLayout::Pages(int64_t tokens) const {
  return page_bytes == 0 ? 0 : (tokens + page_tokens - 1) / page_tokens;
}

int64_t KvLayout::Bytes(int64_t tokens) const {
  return block_floats * kFloatBytes + Pages(tokens) * page_bytes;
}

KvBuffer::KvBuffer(const KvLayout* layout, int64_t bytes)
    : layout_(layout),
      size_(bytes),
      data_(std::make_unique<uint8_t[]>(static_cast<size_t>(bytes))) {
  layout_->bytes_in_use += size_;
}

KvBuffer::KvBuffer(const KvBuffer& other) : KvBuffer(other.layout_, other.size_) {
  std::copy_n(other.bytes(), size_, bytes());
}

KvBuffer::~KvBuffer() { layout_->bytes_in_use -= size_; }

KvState::KvState(const KvLayout* layout)
    : layout_(layout),
      block_(std::make_shared<KvBuffer>(layout, layout->block_floats * kFloatBytes)) {}

void KvState::set_length(int64_t length) {
  length_ = length;
  highest_ = std::max(highest_, length);
}

void KvState::Reserve(int64_t tokens) {
  if (block_.use_count() > 1) block_ = std::make_shared<KvBuffer>(*block_);
  const int64_t pages = layout_->Pages(tokens);
  // A block that ends in the new tokens is written to the page that it began in.
  for (int64_t i = length_ / layout_->page_tokens; i < static_cast<int64_t>(pages_.size()); ++i) {
    if (pages_[i].use_count() > 1) pages_[i] = std::make_shared<KvBuffer>(*pages_[i]);
  }
  while (static_cast<int64_t>(pages_.size()) < pages)
    pages_.push_back(std::make_shared<KvBuffer>(layout_, layout_->page_bytes));
}

void KvState::WriteEntry(int64_t layer, int64_t w, const float* entry) {
  if (Known(layer, w)) return;
  uint8_t* to = EntryAt(layer, w);
  if (layout_->packed) return cpu::PackEntry(entry, layout_->head_dim, layout_->rope_dim, to);
  std::memcpy(to, entry, static_cast<size_t>(layout_->entry_bytes));
}

void KvState::WriteIndexKey(int64_t layer, int64_t w, const float* key) {
  if (Known(layer, w)) return;
  uint8_t* to = IndexKeyAt(layer, w);
  if (layout_->packed) return cpu::PackKey(key, layout_->index_dim, to);
  std::memcpy(to, key, static_cast<size_t>(layout_->key_bytes));
}

const float* KvState::ReadEntry(int64_t layer, int64_t w, float* scratch) const {
  const uint8_t* at = EntryAt(layer, w);
  if (!layout_->packed) return reinterpret_cast<const float*>(at);
  cpu::UnpackEntry(at, layout_->head_dim, layout_->rope_dim, scratch);
  return scratch;
}

const float* KvState::ReadIndexKeys(int64_t layer, int64_t w, int64_t count, float* scratch) const {
  const uint8_t* at = IndexKeyAt(layer, w);
  if (!layout_->packed) return reinterpret_cast<const float*>(at);
  for (int64_t i = 0; i < count; ++i)
    cpu::UnpackKey(at + i * layout_->key_bytes, layout_->index_dim,
                   scratch + i * layout_->index_dim);
  return scratch;
}

void KvState::Rewind(int64_t length) {
  length_ = length;
  mtp_length_ = std::min(mtp_length_, std::max<int64_t>(0, length - 1));
  pages_.resize(static_cast<size_t>(layout_->Pages(length)));
}

std::string_view KvState::BlockBytes() const {
  return View(*block_, layout_->block_floats * kFloatBytes);
}

std::string_view KvState::PageBytes(int64_t page) const {
  return View(*pages_[page], layout_->page_bytes);
}

void KvState::AppendTo(std::string* out) const {
  const int64_t numbers[] = {length_, highest_, mtp_length_, layout_->block_floats,
                             layout_->page_bytes};
  out->append(reinterpret_cast<const char*>(numbers), sizeof(numbers));
  out->append(BlockBytes());
  for (int64_t i = 0; i < layout_->Pages(length_); ++i) out->append(PageBytes(i));
}

bool KvState::ReadFrom(std::string_view bytes) {
  int64_t numbers[5];
  if (bytes.size() < sizeof(numbers)) return false;
  std::memcpy(numbers, bytes.data(), sizeof(numbers));
  bytes.remove_prefix(sizeof(numbers));
  const auto [length, highest, mtp_length, block_floats, bytes_of_page] = numbers;
  if (block_floats != layout_->block_floats || bytes_of_page != layout_->page_bytes || length < 0 ||
      highest < length || mtp_length < 0 || mtp_length > length) {
    return false;
  }
  // Division, so that no length in the bytes can overflow.
  const size_t block_bytes = static_cast<size_t>(block_floats * kFloatBytes);
  const size_t page_bytes = static_cast<size_t>(bytes_of_page);
  const int64_t pages = layout_->Pages(length);
  if (bytes.size() < block_bytes) return false;
  const size_t rest = bytes.size() - block_bytes;
  if (page_bytes == 0 ? rest != 0
                      : rest % page_bytes != 0 || rest / page_bytes != static_cast<size_t>(pages)) {
    return false;
  }
  *this = KvState(layout_);
  length_ = length;
  highest_ = highest;
  mtp_length_ = mtp_length;
  std::memcpy(block_->bytes(), bytes.data(), block_bytes);
  for (int64_t i = 0; i < pages; ++i) {
    pages_.push_back(std::make_shared<KvBuffer>(layout_, bytes_of_page));
    std::memcpy(pages_.back()->bytes(),
                bytes.data() + block_bytes + static_cast<size_t>(i) * page_bytes, page_bytes);
  }
  return true;
}

}  // namespace reprise::engine
