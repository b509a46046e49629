// Until when the sandboxes live that were made over HTTP: kept in the store, so that a restarted
// daemon still ends them in time, and watched by one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "reprise/envd/v1/lease.pb.h"
#include "storage/store.h"

namespace reprise::sandboxd::http {

// The column family that a LeaseTable needs, for StoreOptions::families.
inline constexpr char kLeaseFamily[] = "http_leases";

class LeaseTable {
 public:
  using Lease = ::reprise::envd::v1::SandboxLease;
  // A sandbox has come to its end. Runs on the table's thread; what blocks goes elsewhere. It must
  // lead to Remove or Put, or is called again after kRetry.
  using OnEnd = std::function<void(const std::string& id, const Lease& lease)>;

  // `store` outlives this.
  static absl::StatusOr<std::unique_ptr<LeaseTable>> Open(storage::Store* store,
                                                          storage::Family family);
  ~LeaseTable();
  LeaseTable(const LeaseTable&) = delete;
  LeaseTable& operator=(const LeaseTable&) = delete;

  // Begins to watch. Once.
  void Watch(OnEnd on_end);
  // Ends the watch; waits for an OnEnd that runs.
  void Stop();

  // Durable on return.
  absl::Status Put(const std::string& id, const Lease& lease);
  absl::Status Remove(const std::string& id);
  std::optional<Lease> Get(const std::string& id) const;
  // Counts one more process of a sandbox that belongs to a trajectory: its number, from 1. Durable
  // on return. 0 for other sandboxes.
  absl::StatusOr<uint32_t> CountStart(const std::string& id);

 private:
  struct Entry {
    Lease lease;
    int64_t due_us = 0;  // when OnEnd is to be called; 0: never
  };

  LeaseTable(storage::Store* store, storage::Family family) : store_(store), family_(family) {}
  void Run(const OnEnd& on_end);
  int64_t NextDue() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  storage::Store* const store_;
  const storage::Family family_;
  mutable absl::Mutex mutex_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  uint64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace reprise::sandboxd::http
