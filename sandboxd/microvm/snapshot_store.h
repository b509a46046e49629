// Snapshots of machines on disk (FORMAT.md): what each has of its own, and once for all of them the
// template that they began with, so that they outlive their sandbox, its image, and the daemon. A
// snapshot is there when its name is; nothing half-made is ever visible.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/image/named_records.h"
#include "sandboxd/microvm/template_store.h"
#include "sandboxd/microvm/vm_config.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd::microvm {

namespace sandbox = ::reprise::sandbox::v1;

struct MachineSnapshot {
  sandbox::Image image;
  std::string dir;   // with the parts that vm_config.h names, and the disk of its image
  VmConfig machine;  // that it was taken of
};

class SnapshotStore {
 public:
  // `dir` is private to the daemon and on the file system of the boxes; made where it is missing.
  static absl::StatusOr<std::unique_ptr<SnapshotStore>> Open(const std::string& dir);

  bool HasTemplate(const std::string& template_id) const;
  // Takes the parts in `parts`, a directory that goes with it, as the snapshot `name` of `machine`;
  // one of that name before goes. Everything is on stable storage on return.
  absl::StatusOr<SnapshotImage> Add(const std::string& name, const std::string& parts,
                                    const VmConfig& machine);
  // nullopt when no snapshot has this name.
  absl::StatusOr<std::optional<MachineSnapshot>> Find(const std::string& name) const;
  absl::StatusOr<std::vector<sandbox::Image>> List() const;
  // NOT_FOUND when there is none. A template goes with the last snapshot that begins with it.
  absl::Status Remove(const std::string& name);
  // DATA_LOSS when its devices, or the sums of its memory, are not what they were. (The memory is
  // checked against its sums when it is loaded.)
  absl::Status Check(const MachineSnapshot& snapshot) const;
  // Reads a template's memory back; it has no devices. DATA_LOSS when it is damaged.
  absl::StatusOr<std::shared_ptr<const Template>> LoadTemplate(const VmConfig& machine) const;

 private:
  struct Record;
  explicit SnapshotStore(const std::string& dir);
  std::string TemplatePath(const std::string& template_id) const;
  absl::StatusOr<Record> ReadRecord(const std::string& path) const;
  void RemoveUnnamed() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string dir_;
  const NamedRecords records_;
  mutable absl::Mutex mutex_;  // held while names change
};

}  // namespace reprise::sandboxd::microvm
