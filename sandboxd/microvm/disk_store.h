// Images as read-only EROFS disks: imported once, one file for each manifest digest, names beside
// them. Without an image there is a small root of busybox. Nothing half-made is ever visible.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/image/image_config.h"
#include "sandboxd/image/named_records.h"

namespace reprise::sandboxd::microvm {

namespace sandbox = ::reprise::sandbox::v1;

struct Disk {
  std::string path;    // EROFS, readable for every user
  std::string digest;  // of the image's manifest, or of the default root
  ImageConfig config;
};

class DiskStore {
 public:
  // `dir` is private to the daemon; made where it is missing.
  static absl::StatusOr<std::unique_ptr<DiskStore>> Open(const std::string& dir);

  // Replaces an image of the same name. `source` as OpenImageSource takes it. Disks that no name
  // has any more stay until the next Open: a machine may use them.
  absl::StatusOr<sandbox::Image> Import(const std::string& name, const std::string& source);
  absl::StatusOr<std::vector<sandbox::Image>> List();
  absl::Status Remove(const std::string& name);
  // "" is the default root.
  absl::StatusOr<Disk> Resolve(const std::string& name);

 private:
  explicit DiskStore(const std::string& dir);
  std::string DiskPath(const std::string& digest) const;
  absl::Status MakeDisk(const std::string& root, const std::string& digest) const;
  absl::StatusOr<Disk> DefaultRoot();
  void RemoveLeftovers() const;

  const std::string dir_;
  const NamedRecords records_;
  absl::Mutex default_mutex_;  // the default root is made once
};

}  // namespace reprise::sandboxd::microvm
