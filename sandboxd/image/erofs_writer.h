// Writes a layer's metadata as an EROFS image of 4 KiB blocks that the kernel mounts (5.15 and
// later): extended inodes, directories, extended attributes and short links; files are plain
// extents of the data region that follows. Uncompressed: what is read is found by one
// multiplication, and the chunks below are compressed by themselves.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "sandboxd/image/layer_tree.h"

namespace reprise::sandboxd {

inline constexpr uint64_t kErofsBlockBytes = 4096;

struct ErofsMetadata {
  std::string bytes;        // of the image, from offset 0; zeros follow up to data_start
  uint64_t data_start = 0;  // where LayerNode::data_offset 0 lies; a multiple of `alignment`
  uint32_t inodes = 0;
};

// `data_bytes`: size of the data region. The same tree gives the same bytes. RESOURCE_EXHAUSTED:
// more than EROFS addresses (16 TiB), or attributes of one file over 64 KiB.
absl::StatusOr<ErofsMetadata> WriteErofs(const LayerTree& tree, uint64_t data_bytes,
                                         uint64_t alignment);

}  // namespace reprise::sandboxd
