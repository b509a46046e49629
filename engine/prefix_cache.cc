#include "engine/prefix_cache.h"

#include <utility>

namespace reprise::engine {

struct PrefixCache::Node {
  Node* parent = nullptr;
  std::map<std::vector<int32_t>, std::unique_ptr<Node>> children;
  std::map<std::vector<int32_t>, std::unique_ptr<Node>>::iterator in_parent;
  std::optional<KvState> state;
  std::list<Node*>::iterator use;  // with a state
};

PrefixCache::PrefixCache(const KvLayout* layout, int64_t bytes_max)
    : layout_(layout), bytes_max_(bytes_max), root_(std::make_unique<Node>()) {}

PrefixCache::~PrefixCache() = default;

int64_t PrefixCache::bytes() const {
  const int64_t block_bytes = layout_->block_floats * static_cast<int64_t>(sizeof(float));
  return static_cast<int64_t>(by_use_.size()) * block_bytes + nodes_ * layout_->page_bytes;
}

const KvState* PrefixCache::Find(absl::Span<const int32_t> tokens) {
  const size_t page = static_cast<size_t>(layout_->page_tokens);
  Node* best = nullptr;
  Node* node = root_.get();
  for (size_t at = 0; at + page <= tokens.size(); at += page) {
    const absl::Span<const int32_t> edge = tokens.subspan(at, page);
    auto child = node->children.find({edge.begin(), edge.end()});
    if (child == node->children.end()) break;
    node = child->second.get();
    if (node->state.has_value()) best = node;
  }
  if (best == nullptr) return nullptr;
  by_use_.splice(by_use_.begin(), by_use_, best->use);
  return &*best->state;
}

void PrefixCache::Insert(absl::Span<const int32_t> tokens, const KvState& state) {
  if (layout_->Bytes(static_cast<int64_t>(tokens.size())) > bytes_max_) return;
  const size_t page = static_cast<size_t>(layout_->page_tokens);
  Node* node = root_.get();
  for (size_t at = 0; at < tokens.size(); at += page) {
    const absl::Span<const int32_t> edge = tokens.subspan(at, page);
    auto [child, made] =
        node->children.try_emplace(std::vector<int32_t>(edge.begin(), edge.end()), nullptr);
    if (made) {
      child->second = std::make_unique<Node>();
      child->second->parent = node;
      child->second->in_parent = child;
      ++nodes_;
    }
    node = child->second.get();
  }
  if (node->state.has_value()) {
    by_use_.splice(by_use_.begin(), by_use_, node->use);
    return;
  }
  node->state.emplace(state);
  by_use_.push_front(node);
  node->use = by_use_.begin();
  while (bytes() > bytes_max_) Evict();
}

void PrefixCache::Evict() {
  Node* node = by_use_.back();
  by_use_.pop_back();
  node->state.reset();
  while (node->parent != nullptr && node->children.empty() && !node->state.has_value()) {
    Node* parent = node->parent;
    parent->children.erase(node->in_parent);
    --nodes_;
    node = parent;
  }
}

}  // namespace reprise::engine
