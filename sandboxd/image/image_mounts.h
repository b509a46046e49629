// Layers as mounted file systems of this host: reprise-imagefs serves each layer's image as a file,
// and the kernel's EROFS is mounted over it. Whoever wants an image's content takes
//   Mount(image)   directories, topmost layer first: lower directories of an overlay;
//   ImageFile(id)  the layer's image as a file: a read-only disk of a virtual machine (EROFS).
// Both read on demand and stay valid when the daemon ends. Needs root, Linux 6.12 (EROFS mounts on
// files) and /dev/fuse. Thread-safe; one per catalogue directory at a time.
#pragma once

#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "sandboxd/image/image_catalog.h"

namespace reprise::sandboxd {

struct ImageMountsOptions {
  ImageCatalogOptions catalog;  // handed on to the server
  std::string server_path;      // reprise-imagefs
};

class ImageMounts {
 public:
  explicit ImageMounts(ImageMountsOptions options) : options_(std::move(options)) {}

  // Starts the server unless it runs. A server that has died takes its mounts with it: what is left
  // of them is detached, and the next Mount makes them anew. UNAVAILABLE says what is missing.
  absl::Status EnsureServer();
  absl::StatusOr<std::vector<std::string>> Mount(const CatalogImage& image);
  absl::StatusOr<std::string> ImageFile(const std::string& layer_id);
  // Unmounts layers that no image of `images` has and nobody uses.
  absl::Status UnmountUnused(const std::vector<CatalogImage>& images);
  // Unmounts everything; the server ends. Sandboxes that still use a layer keep it.
  absl::Status Shutdown();

 private:
  std::string FilesDir() const { return options_.catalog.dir + "/files"; }
  std::string MountsDir() const { return options_.catalog.dir + "/mounts"; }
  absl::Status EnsureServerLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status DetachAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const ImageMountsOptions options_;
  absl::Mutex mutex_;
};

}  // namespace reprise::sandboxd
