// Images in containerd: imported under a lease (content, then unpacked snapshots, then the record
// that makes them visible), so that an import that fails or is killed leaves nothing that garbage
// collection does not take.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/container/containerd_client.h"
#include "sandboxd/image/image_source.h"

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
  std::string digest;        // of the manifest
  std::string top_snapshot;  // parent for a container's snapshot
  ImageConfig config;
};

class ImageStore {
 public:
  // `scratch_dir` exists and is private; imports make and remove their own directories in it.
  ImageStore(ContainerdClient* client, std::string scratch_dir)
      : client_(client), scratch_dir_(std::move(scratch_dir)) {}

  // Replaces an image of the same name. Errors as OpenImageSource, and containerd's.
  absl::StatusOr<sandbox::Image> Import(const std::string& name, const std::string& source);
  absl::StatusOr<std::vector<sandbox::Image>> List();
  absl::Status Remove(const std::string& name);
  absl::StatusOr<ResolvedImage> Resolve(const std::string& name);

 private:
  absl::Status WriteBlobs(const std::string& lease, const ImageBundle& bundle,
                          const std::string& top_snapshot);
  absl::Status Unpack(const std::string& lease, const ImageBundle& bundle,
                      const std::vector<std::string>& chain);

  ContainerdClient* const client_;
  const std::string scratch_dir_;
};

}  // namespace reprise::sandboxd
