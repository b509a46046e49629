#include "sandboxd/image/layer_tree.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include "base/status_macros.h"

namespace reprise::sandboxd {
namespace {

constexpr size_t kNameBytesMax = 255;
constexpr size_t kDepthMax = 1000;
constexpr uint32_t kNewDirectoryMode = S_IFDIR | 0755;

}  // namespace

LayerTree::LayerTree() {
  nodes_.emplace_back();
  nodes_[kRoot].mode = kNewDirectoryMode;
}

absl::StatusOr<std::vector<std::string>> LayerTree::Split(std::string_view path) const {
  auto refuse = [path](std::string_view why) {
    return absl::InvalidArgumentError(fmt::format("refused: the entry '{}' {}", path, why));
  };
  std::vector<std::string> parts;
  if (path.starts_with('/')) return refuse("has an absolute name");
  if (path.find('\0') != std::string_view::npos) return refuse("has a zero byte in its name");
  for (size_t begin = 0; begin < path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view part = path.substr(begin, end - begin);
    begin = end + 1;
    if (part.empty() || part == ".") continue;
    if (part == "..") return refuse("leads out of the layer");
    if (part.size() > kNameBytesMax) return refuse("has a name of more than 255 bytes");
    parts.emplace_back(part);
  }
  if (parts.size() > kDepthMax) return refuse("is nested too deeply");
  return parts;
}

absl::StatusOr<uint32_t> LayerTree::Parent(const std::vector<std::string>& parts,
                                           std::string_view path) {
  uint32_t at = kRoot;
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    auto found = nodes_[at].children.find(parts[i]);
    uint32_t next;
    if (found == nodes_[at].children.end()) {
      next = static_cast<uint32_t>(nodes_.size());
      LayerNode directory;
      directory.mode = kNewDirectoryMode;
      nodes_.push_back(std::move(directory));
      nodes_[at].children[parts[i]] = next;
    } else {
      next = found->second;
    }
    if (!S_ISDIR(nodes_[next].mode)) {
      return absl::InvalidArgumentError(fmt::format(
          "refused: the entry '{}' lies below '{}', which is not a directory", path, parts[i]));
    }
    at = next;
  }
  return at;
}

absl::StatusOr<uint32_t> LayerTree::Add(std::string_view path, LayerNode node) {
  ASSIGN_OR_RETURN(const std::vector<std::string> parts, Split(path));
  const bool is_directory = S_ISDIR(node.mode);
  if (parts.empty() && !is_directory)
    return absl::InvalidArgumentError("refused: the layer's root is not a directory");
  uint32_t existing = kRoot;
  uint32_t parent = kRoot;
  bool exists = parts.empty();
  if (!parts.empty()) {
    ASSIGN_OR_RETURN(parent, Parent(parts, path));
    auto found = nodes_[parent].children.find(parts.back());
    exists = found != nodes_[parent].children.end();
    if (exists) existing = found->second;
  }
  if (exists && is_directory) {
    LayerNode& old = nodes_[existing];
    // A directory over a whiteout: the one below stays deleted.
    node.opaque = old.opaque || IsWhiteout(old) || node.opaque;
    if (S_ISDIR(old.mode)) {
      node.children = std::move(old.children);
      old = std::move(node);
      return existing;
    }
  }
  if (exists && S_ISREG(nodes_[existing].mode)) --nodes_[existing].links;
  const auto index = static_cast<uint32_t>(nodes_.size());
  nodes_.push_back(std::move(node));
  nodes_[parent].children[parts.back()] = index;
  return index;
}

absl::StatusOr<uint32_t> LayerTree::Find(std::string_view path) const {
  ASSIGN_OR_RETURN(const std::vector<std::string> parts, Split(path));
  uint32_t at = kRoot;
  for (const std::string& part : parts) {
    auto found = nodes_[at].children.find(part);
    if (found == nodes_[at].children.end())
      return absl::NotFoundError(fmt::format("the layer has no '{}'", path));
    at = found->second;
  }
  return at;
}

absl::Status LayerTree::Link(std::string_view path, std::string_view target) {
  ASSIGN_OR_RETURN(const uint32_t file, Find(target));
  if (S_ISDIR(nodes_[file].mode)) {
    return absl::InvalidArgumentError(
        fmt::format("refused: '{}' is a hard link to the directory '{}'", path, target));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> parts, Split(path));
  if (parts.empty()) return absl::InvalidArgumentError("refused: the layer's root is a hard link");
  ASSIGN_OR_RETURN(const uint32_t parent, Parent(parts, path));
  auto [at, is_new] = nodes_[parent].children.try_emplace(parts.back(), file);
  if (!is_new && at->second == file) return absl::OkStatus();
  if (!is_new) --nodes_[at->second].links;
  at->second = file;
  ++nodes_[file].links;
  return absl::OkStatus();
}

absl::Status LayerTree::Whiteout(std::string_view path) {
  absl::StatusOr<uint32_t> existing = Find(path);
  if (existing.ok()) {
    // Named in this layer too: only what is below it goes.
    if (S_ISDIR(nodes_[*existing].mode)) nodes_[*existing].opaque = true;
    return absl::OkStatus();
  }
  LayerNode node;
  node.mode = S_IFCHR;
  return Add(path, std::move(node)).status();
}

absl::Status LayerTree::Opaque(std::string_view path) {
  absl::StatusOr<uint32_t> directory = Find(path);
  if (!directory.ok()) {
    LayerNode node;
    node.mode = kNewDirectoryMode;
    directory = Add(path, std::move(node));
  }
  RETURN_IF_ERROR(directory.status());
  if (!S_ISDIR(nodes_[*directory].mode)) {
    return absl::InvalidArgumentError(
        fmt::format("refused: '{}' is marked as an opaque directory and is none", path));
  }
  nodes_[*directory].opaque = true;
  return absl::OkStatus();
}

bool IsWhiteout(const LayerNode& node) { return S_ISCHR(node.mode); }

bool KeepsXattr(std::string_view name) {
  if (name == "security.capability") return true;
  return name.starts_with("user.") && !name.starts_with("user.overlay.") && name.size() > 5 &&
         name.size() <= kNameBytesMax;
}

}  // namespace reprise::sandboxd
