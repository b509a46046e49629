// Reads a layer, a directory or the upper side of an overlay into a tree and chunks.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "sandboxd/image/chunk_packer.h"
#include "sandboxd/image/layer_tree.h"

namespace reprise::sandboxd {

// Reads the tar (plain, gzip or zstd) of an OCI layer; ".wh." names are deletions. Refused, with
// `what` and the entry in the error: devices, names that lead out, links to what the layer does not
// have, links where the runtime mounts (INVALID_ARGUMENT); damage (DATA_LOSS); more than
// layer_scan's limits (RESOURCE_EXHAUSTED). Sockets are left out.
absl::Status BuildFromTar(const std::string& path, const std::string& what, ChunkPacker* packer,
                          LayerTree* tree);

enum class DirectoryKind {
  kRoot,   // a plain root file system: devices and sockets are left out with a log line
  kUpper,  // of an overlay: 0/0 devices and opaque directories are deletions
};

// Reads a directory in byte order of its names, without what is mounted inside it. A file that
// changes meanwhile is ABORTED.
absl::Status BuildFromDirectory(const std::string& path, DirectoryKind kind, ChunkPacker* packer,
                                LayerTree* tree);

}  // namespace reprise::sandboxd
