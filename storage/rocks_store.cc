#include "storage/rocks_store.h"

#include <fmt/format.h>
#include <rocksdb/cache.h>
#include <rocksdb/env.h>
#include <rocksdb/sst_file_reader.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_join.h"
#include "base/failpoint.h"
#include "base/fd.h"
#include "base/status_macros.h"
#include "storage/log_check.h"
#include "storage/record.h"
#include "storage/rocks_status.h"
#include "storage/table_check.h"

namespace reprise::storage {
namespace {

constexpr size_t kBlockCacheBytes = 32u << 20;
constexpr size_t kWriteBufferBytes = 16u << 20;
constexpr uint64_t kMaxLogBytes = 128u << 20;  // of all live write-ahead logs
constexpr int kMaxOpenFiles = 256;
constexpr char kFamiliesKey[] = "families";

rocksdb::Slice ToSlice(std::string_view text) { return {text.data(), text.size()}; }
std::string_view ToView(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

// Silent: RocksDB's own LOG file tells a user nothing that an error does not.
class NullLogger final : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

rocksdb::Options DbOptions(const StoreOptions& options) {
  rocksdb::Options db;
  if (options.env != nullptr) db.env = options.env;
  db.create_if_missing = true;
  db.create_missing_column_families = true;
  db.max_open_files = kMaxOpenFiles;
  db.max_total_wal_size = kMaxLogBytes;
  db.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  db.avoid_unnecessary_blocking_io = true;
  db.skip_stats_update_on_db_open = true;
  db.skip_checking_sst_file_sizes_on_db_open = false;
  db.paranoid_checks = true;
  db.info_log = std::make_shared<NullLogger>();
  db.IncreaseParallelism(2);
  db.allow_concurrent_memtable_write = false;  // one committer writes
  db.enable_pipelined_write = false;
  return db;
}

rocksdb::ColumnFamilyOptions FamilyOptions(const std::shared_ptr<rocksdb::Cache>& cache) {
  rocksdb::ColumnFamilyOptions family;
  family.write_buffer_size = kWriteBufferBytes;
  family.compression = rocksdb::kLZ4Compression;
  family.bottommost_compression = rocksdb::kZSTD;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = cache;
  table.format_version = 5;
  family.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return family;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> Store::Open(const StoreOptions& options) {
  return RocksStore::Open(options);
}

absl::StatusOr<std::unique_ptr<Store>> RocksStore::Open(const StoreOptions& options) {
  if (options.env == nullptr) RETURN_IF_ERROR(base::MakeDirs(options.path));
  std::unique_ptr<RocksStore> store(new RocksStore(options));
  RETURN_IF_ERROR(store->OpenDb());
  RETURN_IF_ERROR(store->CheckFamilies());
  store->committer_ = std::thread([raw = store.get()] { raw->CommitLoop(); });
  return store;
}

absl::Status RocksStore::OpenDb() {
  RETURN_IF_ERROR(CheckLogFiles(env(), options_.path));
  RETURN_IF_ERROR(CheckTables(env(), options_.path));
  auto cache = rocksdb::NewLRUCache(kBlockCacheBytes);
  std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
  descriptors.emplace_back(rocksdb::kDefaultColumnFamilyName, FamilyOptions(cache));
  for (const std::string& name : options_.families)
    descriptors.emplace_back(name, FamilyOptions(cache));
  rocksdb::DB* db = nullptr;
  rocksdb::Status status =
      rocksdb::DB::Open(DbOptions(options_), options_.path, descriptors, &handles_, &db);
  db_.reset(db);
  if (status.ok()) return absl::OkStatus();
  if (status.IsIOError() && status.ToString().find("lock") != std::string::npos) {
    return absl::UnavailableError(fmt::format(
        "the store {} is in use by another process; stop it or name another state directory",
        options_.path));
  }
  if (status.IsNoSpace()) return WriteError(status);
  if (status.IsInvalidArgument()) {
    return absl::DataLossError(fmt::format("the store {} was made by another program: {}",
                                           options_.path, status.ToString()));
  }
  // RocksDB blames its MANIFEST for a table whose end is damaged.
  const std::string damaged = status.IsCorruption() ? DamagedTable() : "";
  return absl::DataLossError(fmt::format("cannot open the store {}: {}; restore it from a copy",
                                         options_.path,
                                         damaged.empty() ? status.ToString() : damaged));
}

std::string RocksStore::DamagedTable() const {
  std::vector<std::string> names;
  if (!env()->GetChildren(options_.path, &names).ok()) return "";
  for (const std::string& name : names) {
    if (!name.ends_with(".sst")) continue;
    const std::string path = options_.path + "/" + name;
    rocksdb::Options options;
    options.env = env();
    rocksdb::SstFileReader reader(options);
    rocksdb::Status status = reader.Open(path);
    if (status.ok()) status = reader.VerifyChecksum();
    if (!status.ok()) return fmt::format("{} is damaged: {}", path, status.ToString());
  }
  return "";
}

absl::Status RocksStore::CheckFamilies() {
  const std::string expected = absl::StrJoin(options_.families, "\n");
  std::string record;
  rocksdb::Status status = db_->Get(rocksdb::ReadOptions(), handles_[0], kFamiliesKey, &record);
  auto write_expected = [&] {
    rocksdb::WriteOptions write;
    write.sync = true;
    status = db_->Put(write, handles_[0], kFamiliesKey, FrameRecord(kFamiliesKey, expected));
    return status.ok() ? absl::OkStatus() : WriteError(status);
  };
  if (status.IsNotFound()) return write_expected();
  if (!status.ok()) return ReadError(status, -1, kFamiliesKey);
  absl::StatusOr<std::string_view> found = UnframeRecord(kFamiliesKey, record);
  // A program that has gained families goes on with the store of the one before it.
  if (found.ok() && expected.starts_with(std::string(*found) + "\n")) return write_expected();
  if (!found.ok() || *found != expected) {
    return absl::DataLossError(
        fmt::format("the store {} holds other column families than this program uses; "
                    "it belongs to another daemon or version",
                    options_.path));
  }
  return absl::OkStatus();
}

RocksStore::~RocksStore() {
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
  }
  if (committer_.joinable()) committer_.join();
  for (rocksdb::ColumnFamilyHandle* handle : handles_) {
    if (db_ != nullptr) db_->DestroyColumnFamilyHandle(handle);
  }
  if (db_ != nullptr) db_->Close();
}

std::string RocksStore::Where(Family family, std::string_view key) const {
  return fmt::format("{} family {} key \"{}\"", options_.path,
                     family < 0 ? "default" : options_.families[static_cast<size_t>(family)],
                     absl::CEscape(std::string(key.substr(0, 80))));
}

absl::Status RocksStore::ReadError(const rocksdb::Status& status, Family family,
                                   std::string_view key) const {
  return absl::DataLossError(
      fmt::format("cannot read {}: {}", Where(family, key), status.ToString()));
}

absl::Status RocksStore::WriteError(const rocksdb::Status& status) const {
  if (IsDiskFull(status)) {
    return absl::ResourceExhaustedError(
        fmt::format("the disk of {} is full ({}); free some space and restart: nothing new is "
                    "accepted, what was acknowledged stays",
                    options_.path, status.ToString()));
  }
  return absl::DataLossError(
      fmt::format("a write to {} failed ({}); check the disk and restart: nothing new is accepted, "
                  "what was acknowledged stays",
                  options_.path, status.ToString()));
}

absl::StatusOr<std::string> RocksStore::Get(Family family, std::string_view key) {
  rocksdb::PinnableSlice record;
  rocksdb::Status status = db_->Get(
      rocksdb::ReadOptions(), handles_[1 + static_cast<size_t>(family)], ToSlice(key), &record);
  if (status.IsNotFound())
    return absl::NotFoundError(fmt::format("nothing at {}", Where(family, key)));
  if (!status.ok()) return ReadError(status, family, key);
  absl::StatusOr<std::string_view> payload = UnframeRecord(key, ToView(record));
  if (!payload.ok()) {
    return absl::DataLossError(
        fmt::format("{}: {}", Where(family, key), payload.status().ToString()));
  }
  return std::string(*payload);
}

absl::Status RocksStore::Scan(
    Family family, std::string_view prefix,
    const std::function<absl::Status(std::string_view, std::string_view)>& visit) {
  std::unique_ptr<rocksdb::Iterator> it(
      db_->NewIterator(rocksdb::ReadOptions(), handles_[1 + static_cast<size_t>(family)]));
  for (it->Seek(ToSlice(prefix)); it->Valid() && it->key().starts_with(ToSlice(prefix));
       it->Next()) {
    std::string_view key = ToView(it->key());
    absl::StatusOr<std::string_view> payload = UnframeRecord(key, ToView(it->value()));
    if (!payload.ok()) {
      return absl::DataLossError(
          fmt::format("{}: {}", Where(family, key), payload.status().ToString()));
    }
    RETURN_IF_ERROR(visit(key, *payload));
  }
  if (!it->status().ok()) return ReadError(it->status(), family, prefix);
  return absl::OkStatus();
}

void RocksStore::CommitAsync(Batch batch, Sync sync, std::function<void(absl::Status)> done) {
  absl::Status refused;
  {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &RocksStore::HasRoomOrClosing));
    refused = failed_;
    if (refused.ok() && closing_) refused = absl::UnavailableError("the store is closing");
    if (refused.ok()) {
      queued_bytes_ += batch.bytes();
      queue_.push_back({std::move(batch), sync, std::move(done)});
      return;
    }
  }
  done(refused);
}

absl::Status RocksStore::health() const {
  absl::MutexLock lock(&mutex_);
  return failed_;
}

absl::Status RocksStore::Reclaim() {
  RETURN_IF_ERROR(health());
  rocksdb::FlushOptions flush;
  flush.wait = true;
  rocksdb::Status status = db_->Flush(flush, handles_);
  rocksdb::CompactRangeOptions compact;
  compact.exclusive_manual_compaction = false;
  // Without it the lowest level, where most of the data is, would stay as it is.
  compact.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  for (rocksdb::ColumnFamilyHandle* handle : handles_) {
    if (status.ok()) status = db_->CompactRange(compact, handle, nullptr, nullptr);
  }
  if (status.ok()) return absl::OkStatus();
  absl::MutexLock lock(&mutex_);
  if (failed_.ok()) failed_ = WriteError(status);
  return failed_;
}

Store::Stats RocksStore::stats() const {
  absl::MutexLock lock(&mutex_);
  return stats_;
}

absl::Status RocksStore::WriteGroup(const std::vector<Pending>& group) {
  rocksdb::WriteBatch batch;
  bool durable = false;
  for (const Pending& pending : group) {
    durable |= pending.sync == Sync::kDurable;
    for (const Batch::Op& op : pending.batch.ops()) {
      rocksdb::ColumnFamilyHandle* handle = handles_[1 + static_cast<size_t>(op.family)];
      rocksdb::Status status;
      switch (op.kind) {
        case Batch::Op::kPut:
          status = batch.Put(handle, op.key, FrameRecord(op.key, op.value));
          break;
        case Batch::Op::kDelete:
          status = batch.Delete(handle, op.key);
          break;
      }
      if (!status.ok()) return WriteError(status);
    }
  }
  rocksdb::WriteOptions write;
  write.sync = durable && options_.durability == Durability::kFsync;
  write.disableWAL = options_.durability == Durability::kNone;
  rocksdb::Status status = db_->Write(write, &batch);
  return status.ok() ? absl::OkStatus() : WriteError(status);
}

void RocksStore::CommitLoop() {
  while (true) {
    std::vector<Pending> group;
    absl::Status status;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &RocksStore::HasWorkOrClosing));
      if (queue_.empty()) return;
      group.swap(queue_);
      queued_bytes_ = 0;
      status = failed_;
    }
    if (status.ok()) {
      base::FailPoint("commit.before");
      status = WriteGroup(group);
      base::FailPoint("commit.after");
      absl::MutexLock lock(&mutex_);
      if (!status.ok() && failed_.ok()) failed_ = status;
      stats_.groups += 1;
      for (const Pending& pending : group) {
        stats_.batches += 1;
        stats_.bytes += pending.batch.bytes();
      }
      bool durable = false;
      for (const Pending& pending : group) durable |= pending.sync == Sync::kDurable;
      if (durable && options_.durability == Durability::kFsync) stats_.syncs += 1;
    }
    for (Pending& pending : group) {
      if (pending.done) pending.done(status);
    }
  }
}

}  // namespace reprise::storage
