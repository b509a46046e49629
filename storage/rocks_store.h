// storage::Store on RocksDB. One committer thread swaps the queue of all writers, writes it as one
// batch and syncs once; thread-per-writer group commit loses most of its time in wake-ups.
#pragma once

#include <rocksdb/db.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "storage/store.h"

namespace reprise::storage {

class RocksStore final : public Store {
 public:
  static absl::StatusOr<std::unique_ptr<Store>> Open(const StoreOptions& options);
  ~RocksStore() override;

  absl::StatusOr<std::string> Get(Family family, std::string_view key) override;
  absl::Status Scan(
      Family family, std::string_view prefix,
      const std::function<absl::Status(std::string_view, std::string_view)>& visit) override;
  void CommitAsync(Batch batch, Sync sync, std::function<void(absl::Status)> done) override;
  absl::Status health() const override;
  Durability durability() const override { return options_.durability; }
  absl::Status Reclaim() override;
  Stats stats() const override;

 private:
  struct Pending {
    Batch batch;
    Sync sync;
    std::function<void(absl::Status)> done;
  };

  explicit RocksStore(const StoreOptions& options) : options_(options) {}

  absl::Status OpenDb();
  // The first table file that does not read back, with the reason; "" when all do.
  std::string DamagedTable() const;
  absl::Status CheckFamilies();
  void CommitLoop();
  // Writes one group; the error is final for the store.
  absl::Status WriteGroup(const std::vector<Pending>& group);
  absl::Status WriteError(const rocksdb::Status& status) const;
  absl::Status ReadError(const rocksdb::Status& status, Family family, std::string_view key) const;
  rocksdb::Env* env() const {
    return options_.env != nullptr ? options_.env : rocksdb::Env::Default();
  }
  std::string Where(Family family, std::string_view key) const;
  bool HasWorkOrClosing() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return closing_ || !queue_.empty();
  }
  bool HasRoomOrClosing() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return closing_ || queued_bytes_ < options_.max_queued_bytes;
  }

  // Constant after Open.
  const StoreOptions options_;
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;  // [0] is "default", [1 + f] is family f

  mutable absl::Mutex mutex_;
  std::vector<Pending> queue_ ABSL_GUARDED_BY(mutex_);
  size_t queued_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);
  Stats stats_ ABSL_GUARDED_BY(mutex_);
  std::thread committer_;
};

}  // namespace reprise::storage
