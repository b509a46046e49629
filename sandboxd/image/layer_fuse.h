// A FUSE file system with one file per layer: DIR/<layer id> is the layer's image, read on demand.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "sandboxd/image/image_catalog.h"

namespace reprise::sandboxd {

struct LayerFuseOptions {
  std::string mount_point;  // an existing directory
  int threads = 8;          // readers at one time
  int prefetch_threads = 4;
};

// Mounts, calls `ready`, serves until it is unmounted or the process gets SIGTERM, and unmounts.
// `catalog` outlives the call. Errors: FUSE is not there, or the mount point cannot be used.
absl::Status ServeLayers(ImageCatalog* catalog, const LayerFuseOptions& options,
                         const std::function<void()>& ready);

}  // namespace reprise::sandboxd
