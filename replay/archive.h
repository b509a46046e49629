// Sealed trajectories as one file each: smaller than their entries in the store, checked when they
// are read, and easy to carry away. A file is named by the SHA-256 of its trajectory's id, whole
// before anything names it, and forgotten by the store before it is removed. Format:
// replay/FORMAT.md.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/journal/v1/journal.pb.h"
#include "storage/file_dir.h"

namespace reprise::replay {

namespace journal = ::reprise::journal::v1;

class Archive {
 public:
  // Makes `directory` when it is missing. `env`: of its disk, as in StoreOptions.
  static absl::StatusOr<Archive> Open(const std::string& directory, rocksdb::Env* env);

  // Durable on return; replaces a file of the same trajectory. What its head says of the file.
  // REQUIRES: there are entries.
  absl::StatusOr<journal::TrajectoryHead> Write(
      std::string_view trajectory_id, const std::vector<journal::TrajectoryEntry>& entries) const;
  // DATA_LOSS, with file and offset, when the file is not what `head` says.
  absl::StatusOr<std::vector<journal::TrajectoryEntry>> Read(
      const journal::TrajectoryHead& head) const;
  // OK when it is not there.
  absl::Status Remove(const journal::TrajectoryHead& head) const;
  // Removes files that `named` does not have: what a kill left.
  absl::Status RemoveOthers(const std::set<std::string>& named) const;

 private:
  explicit Archive(storage::FileDir files) : files_(std::move(files)) {}
  storage::FileDir files_;
};

// The whole of one file, and back; `what` names it in errors.
std::string EncodeArchive(const std::vector<journal::TrajectoryEntry>& entries);
absl::StatusOr<std::vector<journal::TrajectoryEntry>> DecodeArchive(std::string_view file,
                                                                    const std::string& what);

}  // namespace reprise::replay
