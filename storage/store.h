// The RocksDB store of one daemon: column families, one committer thread that turns all queued
// writes into one synced batch, and a sticky error after the first failed write. Format:
// storage/FORMAT.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace rocksdb {
class Env;
}

namespace reprise::storage {

enum class Durability { kFsync, kOs, kNone };

// "fsync", "os" or "none". INVALID_ARGUMENT otherwise.
absl::StatusOr<Durability> ParseDurability(std::string_view name);

// A column family, by its index in StoreOptions::families.
using Family = int;

struct StoreOptions {
  std::string path;  // directory; made when missing
  std::vector<std::string>
      families;  // names, in an order that never changes; "default" is not among them
  Durability durability = Durability::kFsync;
  rocksdb::Env* env = nullptr;          // nullptr: the real disk; tests inject faults
  size_t max_queued_bytes = 64u << 20;  // writers wait above this
};

// Writes that become visible and durable together. Values are payloads: the store frames them
// (version, CRC-32C).
class Batch {
 public:
  struct Op {
    enum Kind : uint8_t { kPut, kDelete } kind;
    Family family;
    std::string key, value;  // value: payload of a put
  };
  void Put(Family family, std::string_view key, std::string_view payload);
  void Delete(Family family, std::string_view key);
  bool empty() const { return ops_.empty(); }
  size_t bytes() const { return bytes_; }
  const std::vector<Op>& ops() const { return ops_; }

 private:
  std::vector<Op> ops_;
  size_t bytes_ = 0;
};

enum class Sync {
  kDurable,
  kLazy
};  // kLazy: visible at once, durable with the next durable commit at the latest

class Store {
 public:
  // Errors: UNAVAILABLE when another process holds the store; DATA_LOSS naming the file when it is
  // corrupt.
  static absl::StatusOr<std::unique_ptr<Store>> Open(const StoreOptions& options);
  virtual ~Store() = default;

  // Payload of one key. NOT_FOUND; DATA_LOSS (naming family and key) when the frame's CRC does not
  // match.
  virtual absl::StatusOr<std::string> Get(Family family, std::string_view key) = 0;
  // Calls `visit` for each key with `prefix`, in key order, until it returns an error (which is
  // returned).
  virtual absl::Status Scan(
      Family family, std::string_view prefix,
      const std::function<absl::Status(std::string_view key, std::string_view payload)>& visit) = 0;

  // Adds the deletion of every key with `prefix` to `batch`, one by one: a compaction that has nothing
  // but deletions of ranges left, and fails, aborts a RocksDB that is built with assertions.
  absl::Status DeleteAll(Family family, std::string_view prefix, Batch* batch);

  // Queues a batch; `done` runs on the committer thread once it is as durable as `sync` and the
  // store's durability ask, or with the error. Batches become visible in the order of their
  // commits.
  virtual void CommitAsync(Batch batch, Sync sync, std::function<void(absl::Status)> done) = 0;
  // The same, waiting.
  absl::Status Commit(Batch batch, Sync sync = Sync::kDurable);

  // Not OK once a write has failed: from then on every commit is refused with this error
  // (RESOURCE_EXHAUSTED for a full disk, DATA_LOSS else), while reads go on.
  virtual absl::Status health() const = 0;
  virtual Durability durability() const = 0;
  // Gives the disk back what was deleted: writes out what is in memory, so that old write-ahead logs
  // go, and rewrites the tables without what is gone. As long as reading and writing all live data
  // of the store takes; other calls go on. Errors as health().
  virtual absl::Status Reclaim() = 0;
  // Counters since Open: commits asked, groups written, syncs.
  struct Stats {
    uint64_t batches = 0, groups = 0, syncs = 0, bytes = 0;
  };
  virtual Stats stats() const = 0;
};

}  // namespace reprise::storage
