// Disks of whole systems as images of the vm tier: a checked copy of each in the store, never
// written again, and names beside them. Nothing half-made is ever visible.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/image/named_records.h"

namespace reprise::sandboxd {

namespace sandbox = ::reprise::sandbox::v1;

struct DiskImage {
  sandbox::Image image;
  std::string path;            // readable for every user
  std::string format;          // "raw" or "qcow2"
  uint64_t virtual_bytes = 0;  // of the disk
};

class DiskImages {
 public:
  // `dir` is private to the daemon; made where it is missing.
  static absl::StatusOr<std::unique_ptr<DiskImages>> Open(const std::string& dir);

  // Copies the disk `source` (a file that IsDiskFile) under a name; shares its blocks where the
  // file system can. Replaces a disk of the same name. Errors as CheckQcow2.
  absl::StatusOr<sandbox::Image> Import(const std::string& name, const std::string& source);
  absl::StatusOr<std::vector<sandbox::Image>> List() const;
  // NOT_FOUND when there is none. Its file stays until the next Open: a machine may use it.
  absl::Status Remove(const std::string& name);
  // nullopt when no disk has this name. DATA_LOSS when its file is gone.
  absl::StatusOr<std::optional<DiskImage>> Find(const std::string& name) const;

 private:
  explicit DiskImages(const std::string& dir);
  std::string DiskPath(const std::string& digest) const;
  absl::StatusOr<DiskImage> ReadRecord(const std::string& path) const;
  void RemoveLeftovers() const;

  const std::string dir_;
  const NamedRecords records_;
};

}  // namespace reprise::sandboxd
