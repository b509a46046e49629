// One layer as a tree of inodes, between whatever it came from (a tar, a directory, the upper side
// of an overlay) and the EROFS metadata made from it. Deletions are as overlayfs wants them: a
// whiteout is a character device 0/0, a directory that hides what is below it has the attribute
// trusted.overlay.opaque. No other device, and no other trusted attribute, can get in.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::sandboxd {

struct LayerNode {
  uint32_t mode = 0;  // type and permissions, as st_mode
  uint32_t uid = 0, gid = 0;
  int64_t mtime_s = 0;
  uint32_t mtime_ns = 0;
  uint32_t links = 1;        // names of a file; directories' are counted when they are written
  uint64_t size = 0;         // of a file's content or a link's target
  uint64_t data_offset = 0;  // of a file's content in the layer's data
  std::string target;        // of a symbolic link
  bool opaque = false;       // of a directory
  std::vector<std::pair<std::string, std::string>> xattrs;  // full names, sorted
  std::map<std::string, uint32_t> children;                 // of a directory: name -> node
};

class LayerTree {
 public:
  // Starts with the root directory, mode 0755.
  LayerTree();

  static constexpr uint32_t kRoot = 0;
  const std::vector<LayerNode>& nodes() const { return nodes_; }
  LayerNode& node(uint32_t index) { return nodes_[index]; }

  // Paths are relative, "" or "." is the root; "./" and a trailing '/' are fine. INVALID_ARGUMENT:
  // a path that leads out, or through something that is not a directory; names over 255 bytes.
  // Parents that are missing are made. A new entry replaces one of the same name, but a directory
  // keeps its content when it is named again.
  absl::StatusOr<uint32_t> Add(std::string_view path, LayerNode node);
  // One more name for the file at `target`; NOT_FOUND when the layer has none there.
  absl::Status Link(std::string_view path, std::string_view target);
  // What the layers below have at `path` is gone.
  absl::Status Whiteout(std::string_view path);
  // What the layers below have in the directory `path` is gone.
  absl::Status Opaque(std::string_view path);
  // NOT_FOUND.
  absl::StatusOr<uint32_t> Find(std::string_view path) const;

 private:
  absl::StatusOr<std::vector<std::string>> Split(std::string_view path) const;
  absl::StatusOr<uint32_t> Parent(const std::vector<std::string>& parts, std::string_view path);

  std::vector<LayerNode> nodes_;  // those that were replaced stay, without a name
};

bool IsWhiteout(const LayerNode& node);

// Whether an extended attribute of an image is kept: user attributes and file capabilities, but
// nothing that means something to overlayfs or to a security module of the host.
bool KeepsXattr(std::string_view name);

}  // namespace reprise::sandboxd
