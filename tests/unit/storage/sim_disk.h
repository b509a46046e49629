// A disk in memory for RocksDB that fails where a test says: writes, syncs, renames, a full disk,
// and the end of the process or of the power at any operation. It knows what was synced: after a
// power cut the rest is gone, or a part of it that was being written is left torn.
#pragma once

#include <rocksdb/env.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace reprise::storage {

enum class DiskFault {
  kNone,
  kWriteError,   // half of the write arrives, the rest fails
  kNoSpace,      // the same, the disk being full from then on
  kSyncError,    // of a file or a directory
  kRenameError,  // and of the creation of a file
  kKilled,       // the process ends: everything written stays
  kPowerCut,     // what was not synced is gone
  kPowerCutTorn  // the same, but half of what was not synced is there
};

enum class DiskOperation { kWrite, kSync, kName, kDelete };

class SimDisk final : public rocksdb::EnvWrapper {
 public:
  SimDisk();
  ~SimDisk() override;

  // The operation that fails: the `at`-th from now, from 0, of those that the fault can befall.
  // Later ones work again, but for kNoSpace and the ends.
  void Arm(DiskFault fault, int at);
  // How many operations the armed kind of fault could have befallen since Arm.
  int points() const;
  // Whether the fault happened, and what it befell first.
  bool fired() const;
  DiskOperation fired_at() const;
  // After the store on it was closed: the disk as the next process finds it, without faults.
  void Restart();

  std::string Read(const std::string& path);
  void Write(const std::string& path, const std::string& content);
  void Flip(const std::string& path, size_t byte, unsigned char mask);
  std::vector<std::string> Files(const std::string& directory);

  rocksdb::Status NewWritableFile(const std::string& name,
                                  std::unique_ptr<rocksdb::WritableFile>* result,
                                  const rocksdb::EnvOptions& options) override;
  rocksdb::Status NewDirectory(const std::string& name,
                               std::unique_ptr<rocksdb::Directory>* result) override;
  rocksdb::Status RenameFile(const std::string& from, const std::string& to) override;
  rocksdb::Status DeleteFile(const std::string& name) override;

 private:
  class File;
  class Dir;
  using Kind = DiskOperation;
  // A change of a directory that is not synced.
  struct NameChange {
    std::string from, to;  // from empty: created
    bool replaced = false;
    std::string old_content;
  };

  // The error for the next operation of that kind; OK: it works. `torn` is set for a write of which
  // half arrives.
  rocksdb::Status Next(Kind kind, bool* torn = nullptr) ABSL_LOCKS_EXCLUDED(mutex_);
  void Synced(const std::string& name, uint64_t size) ABSL_LOCKS_EXCLUDED(mutex_);

  mutable absl::Mutex mutex_;
  DiskFault fault_ ABSL_GUARDED_BY(mutex_) = DiskFault::kNone;
  int at_ ABSL_GUARDED_BY(mutex_) = 0, points_ ABSL_GUARDED_BY(mutex_) = 0;
  bool fired_ ABSL_GUARDED_BY(mutex_) = false;
  DiskOperation fired_at_ ABSL_GUARDED_BY(mutex_) = DiskOperation::kWrite;
  std::map<std::string, uint64_t> synced_ ABSL_GUARDED_BY(mutex_);  // bytes of each file
  std::vector<NameChange> changes_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace reprise::storage
