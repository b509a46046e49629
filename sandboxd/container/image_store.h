// Images of the container tier, in containerd or in chunks (sandboxd/image/image_catalog.h).
// Images in containerd: imported under a lease (content, then unpacked snapshots, then the record
// that makes them visible), so that an import that fails or is killed leaves nothing that garbage
// collection does not take.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/container/containerd_client.h"
#include "sandboxd/image/image_catalog.h"
#include "sandboxd/image/image_mounts.h"
#include "sandboxd/image/image_source.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

namespace sandbox = ::reprise::sandbox::v1;

// Deletes its lease when it goes out of scope. With `collect`, what nothing else refers to is gone
// then; without, it goes with the next collection.
class LeaseHolder {
 public:
  static absl::StatusOr<std::unique_ptr<LeaseHolder>> Make(ContainerdClient* client,
                                                           int64_t seconds, bool collect);
  ~LeaseHolder();
  LeaseHolder(const LeaseHolder&) = delete;
  LeaseHolder& operator=(const LeaseHolder&) = delete;
  const std::string& id() const { return id_; }

 private:
  LeaseHolder(ContainerdClient* client, std::string id, bool collect)
      : client_(client), id_(std::move(id)), collect_(collect) {}
  ContainerdClient* const client_;
  const std::string id_;
  const bool collect_;
};

// What a container is made from.
struct ResolvedImage {
  std::string name;
  std::string digest;              // of the manifest
  std::string top_snapshot;        // parent for a container's snapshot; "" where `lower` is set
  std::vector<std::string> lower;  // mounted layers, topmost first; empty: containerd has the image
  ImageConfig config;
  uint64_t size_bytes = 0;  // of its layers, as List has it
};

// What a container was made from, kept in its directory: by then the name may mean another image.
absl::Status WriteBoxImage(const std::string& directory, const ResolvedImage& image);
absl::StatusOr<ResolvedImage> ReadBoxImage(const std::string& directory);

class ImageStore {
 public:
  // `scratch_dir` exists and is private; imports make and remove their own directories in it.
  ImageStore(ContainerdClient* client, std::string scratch_dir)
      : client_(client), scratch_dir_(std::move(scratch_dir)) {}

  // From here on images are imported into `catalog` and used through `mounts`; containerd's are
  // found after the catalogue's. To be called before anything else.
  void UseChunks(std::unique_ptr<ImageCatalog> catalog, std::unique_ptr<ImageMounts> mounts);

  // Replaces an image of the same name. Errors as OpenImageSource, and containerd's.
  absl::StatusOr<sandbox::Image> Import(const std::string& name, const std::string& source);
  absl::StatusOr<std::vector<sandbox::Image>> List();
  absl::Status Remove(const std::string& name);
  absl::StatusOr<ResolvedImage> Resolve(const std::string& name);
  // The image `name`: `base` and the upper directory of an overlay on it, on which nothing writes
  // meanwhile, as one more layer. `memo` is a file that helps the next one of the same directory.
  // FAILED_PRECONDITION when the image would have more than kImageLayersMax layers.
  absl::StatusOr<SnapshotImage> Pack(const ResolvedImage& base, const std::string& upper,
                                     const std::string& memo, const std::string& name);

 private:
  absl::Status WriteBlobs(const std::string& lease, const ImageBundle& bundle,
                          const std::string& top_snapshot);
  absl::Status Unpack(const std::string& lease, const ImageBundle& bundle,
                      const std::vector<std::string>& chain);
  absl::StatusOr<SnapshotImage> PackChunks(const ResolvedImage& base, const std::string& upper,
                                           const std::string& name);
  absl::StatusOr<SnapshotImage> PackCopy(const ResolvedImage& base, const std::string& upper,
                                         const std::string& memo, const std::string& name);

  ContainerdClient* const client_;
  const std::string scratch_dir_;
  std::unique_ptr<ImageCatalog> catalog_;  // nullptr: images are containerd's only
  std::unique_ptr<ImageMounts> mounts_;
};

}  // namespace reprise::sandboxd
