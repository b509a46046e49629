// A directory of immutable objects under 64-digit names: the local tier's two halves and the cold
// tier on any POSIX mount. An object appears whole or not at all, whatever is killed; what is
// written in a batch is durable before any of it is visible. Several processes may use one
// directory. Layout: storage/FORMAT.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/fd.h"

namespace reprise::storage {

class ObjectDir {
 public:
  // Makes what is missing below `path`, and removes what batches that were killed left there.
  static absl::StatusOr<std::unique_ptr<ObjectDir>> Open(const std::string& path);
  ObjectDir(const ObjectDir&) = delete;
  ObjectDir& operator=(const ObjectDir&) = delete;

  const std::string& path() const { return path_; }
  std::string PathOf(const std::string& name) const;  // whether or not it is there

  // The whole object; NOT_FOUND when there is none. `touch` makes it the newest for ListOldest.
  absl::StatusOr<std::string> Read(const std::string& name, size_t bytes_max, bool touch) const;
  bool Has(const std::string& name) const;
  // Visible at once, durable at the system's leisure: for copies of what is elsewhere too.
  absl::Status PutCopy(const std::string& name, std::string_view object);
  // True when there was one.
  absl::StatusOr<bool> Remove(const std::string& name);

  struct Info {
    std::string name;
    uint64_t bytes = 0;
    int64_t used_us = 0;  // last time it was written or touched, since the epoch
  };
  // Every object, in no order.
  absl::Status ForEach(const std::function<void(const Info&)>& visit) const;

  // Objects that become visible together with Commit. Thread-safe. Dropping it without Commit
  // leaves nothing.
  class Batch {
   public:
    ~Batch();
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;
    // Whether the object is there already; it is durable with the batch then.
    bool Has(const std::string& name);
    // False when the object is there already, in the directory or in the batch.
    absl::StatusOr<bool> Put(const std::string& name, std::string_view object);
    // On return all objects are visible and durable. To be called once.
    absl::Status Commit();

   private:
    friend class ObjectDir;
    Batch(ObjectDir* dir, std::string staging, base::UniqueFd lock)
        : dir_(dir), staging_(std::move(staging)), lock_(std::move(lock)) {}
    ObjectDir* const dir_;
    const std::string staging_;
    const base::UniqueFd lock_;  // tells others that the batch is alive
    absl::Mutex mutex_;
    std::vector<std::string> names_ ABSL_GUARDED_BY(mutex_);
    std::set<std::string> shards_ ABSL_GUARDED_BY(mutex_);  // directories to sync
  };
  absl::StatusOr<std::unique_ptr<Batch>> Begin();

 private:
  explicit ObjectDir(std::string path) : path_(std::move(path)) {}
  absl::Status RemoveStaleBatches() const;

  const std::string path_;
};

}  // namespace reprise::storage
