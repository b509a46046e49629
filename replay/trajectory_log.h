// The token log of rolloutd: jobs, and one gap-free log of entries a trajectory. Format:
// replay/FORMAT.md.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/journal/v1/journal.pb.h"
#include "storage/store.h"

namespace reprise::replay {

namespace journal = ::reprise::journal::v1;

// The column families that a trajectory log needs, for StoreOptions::families.
std::vector<std::string> TrajectoryLogFamilies();

class TrajectoryLog {
 public:
  // `archive`: directory of the files that sealed trajectories become, `env`: of its disk, as in
  // StoreOptions; "" = none: Compact is refused. Files that a kill left there are removed.
  static absl::StatusOr<std::unique_ptr<TrajectoryLog>> Open(storage::Store* store,
                                                             const std::string& archive = "",
                                                             rocksdb::Env* env = nullptr);
  virtual ~TrajectoryLog() = default;

  virtual absl::Status PutJob(const journal::JobRecord& job) = 0;  // durable on return
  virtual absl::StatusOr<journal::JobRecord> GetJob(std::string_view job_id) = 0;
  virtual absl::StatusOr<std::vector<journal::JobRecord>> ListJobs() = 0;

  struct Append {
    std::string trajectory_id;
    uint64_t index =
        0;  // must be the number of entries that this trajectory has (REQUIRES; checked)
    journal::TrajectoryEntry entry;
  };
  // One batch for all: the tokens of one engine step. `done` runs once all are durable, or with the
  // error.
  virtual void AppendAsync(std::vector<Append> appends, std::function<void(absl::Status)> done) = 0;
  // The same, waiting.
  virtual absl::Status AppendAll(std::vector<Append> appends) = 0;

  // All entries in order, wherever they are. NOT_FOUND when there are none, or none any more;
  // DATA_LOSS when the numbering has a gap, or with the file that is damaged.
  virtual absl::StatusOr<std::vector<journal::TrajectoryEntry>> Read(
      std::string_view trajectory_id) = 0;
  // Ids of the trajectories of a job ("" = all) that have entries, in order.
  virtual absl::StatusOr<std::vector<std::string>> List(std::string_view job_id) = 0;

  // ---- what becomes of sealed trajectories
  // Moves one out of the store into a file of its own; durable on return. OK when it is there
  // already, or dropped. FAILED_PRECONDITION when it is not sealed; NOT_FOUND.
  virtual absl::Status Compact(std::string_view trajectory_id,
                               const journal::TrajectorySummary& summary) = 0;
  // What is known of a trajectory without its entries: nothing until it is compacted. NOT_FOUND.
  virtual absl::StatusOr<journal::TrajectoryHead> Head(std::string_view trajectory_id) = 0;
  // Forgets the entries of a compacted one and keeps its head; durable on return. `exported`: file
  // that has its record, "" = none. OK when it is dropped already. FAILED_PRECONDITION when it is
  // not compacted; NOT_FOUND.
  virtual absl::Status Drop(std::string_view trajectory_id, std::string_view exported) = 0;
  // Forgets a job whose trajectories are all dropped; durable on return. FAILED_PRECONDITION names
  // one that is not.
  virtual absl::Status ForgetJob(std::string_view job_id) = 0;
  // Gives the disk back what the three above deleted, as storage::Store::Reclaim.
  virtual absl::Status Reclaim() = 0;

  // A weight version of a model; durable on return.
  virtual absl::Status PutWeights(const journal::WeightsRecord& weights) = 0;
  // Of one model, or of all when `model` is empty; by model and version.
  virtual absl::StatusOr<std::vector<journal::WeightsRecord>> Weights(std::string_view model) = 0;

  // What became of groups of a job: one batch, durable on return.
  virtual absl::Status PutDeliveries(std::string_view job_id,
                                     const std::vector<journal::Delivery>& deliveries) = 0;
  // Of every group that was ever leased, by ordinal.
  virtual absl::StatusOr<std::vector<journal::Delivery>> Deliveries(std::string_view job_id) = 0;
};

}  // namespace reprise::replay
