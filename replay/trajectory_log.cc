#include "replay/trajectory_log.h"

#include <fmt/format.h>

#include <map>
#include <optional>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/status_macros.h"
#include "replay/archive.h"
#include "replay/keys.h"

namespace reprise::replay {
namespace {

enum TrajectoryFamily : storage::Family { kJobs, kHeads, kEntries, kDeliveries, kWeights };

class TrajectoryLogImpl final : public TrajectoryLog {
 public:
  TrajectoryLogImpl(storage::Store* store, std::optional<Archive> archive)
      : store_(store), archive_(std::move(archive)) {}

  // Files that a kill left before the store named them, or after it had forgotten them.
  absl::Status SweepArchive() {
    if (!archive_.has_value()) return absl::OkStatus();
    std::set<std::string> named;
    RETURN_IF_ERROR(store_->Scan(
        kHeads, "", [&](std::string_view key, std::string_view payload) -> absl::Status {
          ASSIGN_OR_RETURN(const journal::TrajectoryHead head, ParseHead(key, payload));
          if (!head.file().empty()) named.insert(head.file());
          return absl::OkStatus();
        }));
    return archive_->RemoveOthers(named);
  }

  absl::Status PutJob(const journal::JobRecord& job) override {
    storage::Batch batch;
    batch.Put(kJobs, job.job_id(), job.SerializeAsString());
    return store_->Commit(std::move(batch));
  }

  absl::StatusOr<journal::JobRecord> GetJob(std::string_view job_id) override {
    absl::StatusOr<std::string> payload = store_->Get(kJobs, job_id);
    if (absl::IsNotFound(payload.status())) {
      return absl::NotFoundError(
          fmt::format("there is no job \"{}\" in this state directory", job_id));
    }
    RETURN_IF_ERROR(payload.status());
    return ParseJob(job_id, *payload);
  }

  absl::StatusOr<std::vector<journal::JobRecord>> ListJobs() override {
    std::vector<journal::JobRecord> jobs;
    RETURN_IF_ERROR(store_->Scan(
        kJobs, "", [&](std::string_view key, std::string_view payload) -> absl::Status {
          ASSIGN_OR_RETURN(journal::JobRecord job, ParseJob(key, payload));
          jobs.push_back(std::move(job));
          return absl::OkStatus();
        }));
    return jobs;
  }

  void AppendAsync(std::vector<Append> appends, std::function<void(absl::Status)> done) override {
    absl::Status refused;
    {
      absl::MutexLock lock(&mutex_);
      storage::Batch batch;
      refused = FillBatch(appends, &batch);
      if (refused.ok()) {
        // Queued under the lock: the order of the log is the order of the numbers.
        store_->CommitAsync(std::move(batch), storage::Sync::kDurable, std::move(done));
        return;
      }
    }
    done(refused);
  }

  absl::Status AppendAll(std::vector<Append> appends) override {
    absl::Notification finished;
    absl::Status result;
    AppendAsync(std::move(appends), [&](absl::Status status) {
      result = std::move(status);
      finished.Notify();
    });
    finished.WaitForNotification();
    return result;
  }

  absl::StatusOr<std::vector<journal::TrajectoryEntry>> Read(
      std::string_view trajectory_id) override {
    absl::StatusOr<std::vector<journal::TrajectoryEntry>> entries = ReadStored(trajectory_id);
    if (!absl::IsNotFound(entries.status())) return entries;
    // In a file, perhaps since a moment ago.
    ASSIGN_OR_RETURN(const journal::TrajectoryHead head, Head(trajectory_id));
    if (head.dropped_us() != 0) return Dropped(trajectory_id, head);
    if (head.file().empty()) return entries;
    entries = ReadArchived(head);
    if (entries.ok()) return entries;
    // Or gone, since then.
    absl::StatusOr<journal::TrajectoryHead> now = Head(trajectory_id);
    if (now.ok() && now->dropped_us() != 0) return Dropped(trajectory_id, *now);
    return entries;
  }

  absl::StatusOr<journal::TrajectoryHead> Head(std::string_view trajectory_id) override {
    absl::StatusOr<std::string> payload = store_->Get(kHeads, trajectory_id);
    if (absl::IsNotFound(payload.status())) {
      return absl::NotFoundError(
          fmt::format("there is no trajectory \"{}\" in this state directory", trajectory_id));
    }
    RETURN_IF_ERROR(payload.status());
    return ParseHead(trajectory_id, *payload);
  }

  absl::Status Compact(std::string_view trajectory_id,
                       const journal::TrajectorySummary& summary) override {
    if (!archive_.has_value())
      return absl::FailedPreconditionError("this log was opened without an archive");
    ASSIGN_OR_RETURN(const journal::TrajectoryHead now, Head(trajectory_id));
    if (!now.file().empty() || now.dropped_us() != 0) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::vector<journal::TrajectoryEntry> entries, Read(trajectory_id));
    if (!entries.back().has_sealed()) {
      return absl::FailedPreconditionError(
          fmt::format("trajectory \"{}\" is not sealed: it may go on", trajectory_id));
    }
    ASSIGN_OR_RETURN(journal::TrajectoryHead head, archive_->Write(trajectory_id, entries));
    *head.mutable_summary() = summary;
    base::FailPoint("archive.written");
    storage::Batch batch;
    batch.Put(kHeads, trajectory_id, head.SerializeAsString());
    for (size_t n = 0; n < entries.size(); ++n)
      batch.Delete(kEntries, IdNumberKey(trajectory_id, n));
    RETURN_IF_ERROR(store_->Commit(std::move(batch)));
    base::FailPoint("archive.named");
    absl::MutexLock lock(&mutex_);
    length_.erase(std::string(trajectory_id));
    return absl::OkStatus();
  }

  absl::Status Drop(std::string_view trajectory_id, std::string_view exported) override {
    ASSIGN_OR_RETURN(journal::TrajectoryHead head, Head(trajectory_id));
    if (head.dropped_us() != 0) return absl::OkStatus();
    if (head.file().empty() || !archive_.has_value()) {
      return absl::FailedPreconditionError(
          fmt::format("trajectory \"{}\" is not in a file yet", trajectory_id));
    }
    const journal::TrajectoryHead was = head;
    head.set_dropped_us(base::WallMicros());
    head.set_exported(std::string(exported));
    head.clear_file();
    head.clear_digest();
    storage::Batch batch;
    batch.Put(kHeads, trajectory_id, head.SerializeAsString());
    RETURN_IF_ERROR(store_->Commit(std::move(batch)));
    base::FailPoint("archive.forgotten");
    return archive_->Remove(was);
  }

  absl::Status ForgetJob(std::string_view job_id) override {
    storage::Batch batch;
    RETURN_IF_ERROR(store_->Scan(
        kHeads, fmt::format("{}/", job_id),
        [&](std::string_view key, std::string_view payload) -> absl::Status {
          ASSIGN_OR_RETURN(const journal::TrajectoryHead head, ParseHead(key, payload));
          if (head.dropped_us() == 0) {
            return absl::FailedPreconditionError(
                fmt::format("trajectory \"{}\" of job \"{}\" is still here", key, job_id));
          }
          batch.Delete(kHeads, key);
          return absl::OkStatus();
        }));
    batch.Delete(kJobs, job_id);
    RETURN_IF_ERROR(store_->DeleteAll(kDeliveries, IdPrefix(job_id), &batch));
    return store_->Commit(std::move(batch));
  }

  absl::Status Reclaim() override { return store_->Reclaim(); }

  absl::StatusOr<std::vector<std::string>> List(std::string_view job_id) override {
    std::vector<std::string> ids;
    const std::string prefix = job_id.empty() ? "" : fmt::format("{}/", job_id);
    RETURN_IF_ERROR(store_->Scan(kHeads, prefix, [&](std::string_view key, std::string_view) {
      ids.emplace_back(key);
      return absl::OkStatus();
    }));
    return ids;
  }

  absl::Status PutWeights(const journal::WeightsRecord& weights) override {
    storage::Batch batch;
    batch.Put(kWeights, IdNumberKey(weights.model(), weights.version()),
              weights.SerializeAsString());
    return store_->Commit(std::move(batch));
  }

  absl::StatusOr<std::vector<journal::WeightsRecord>> Weights(std::string_view model) override {
    std::vector<journal::WeightsRecord> records;
    RETURN_IF_ERROR(store_->Scan(
        kWeights, model.empty() ? "" : IdPrefix(model),
        [&](std::string_view key, std::string_view payload) -> absl::Status {
          journal::WeightsRecord record;
          if (!record.ParseFromArray(payload.data(), static_cast<int>(payload.size())) ||
              IdNumberKey(record.model(), record.version()) != key) {
            return absl::DataLossError(
                fmt::format("the record of weight version {} is not the WeightsRecord of its model",
                            NumberOfKey(key)));
          }
          records.push_back(std::move(record));
          return absl::OkStatus();
        }));
    return records;
  }

  absl::Status PutDeliveries(std::string_view job_id,
                             const std::vector<journal::Delivery>& deliveries) override {
    storage::Batch batch;
    for (const journal::Delivery& delivery : deliveries) {
      batch.Put(kDeliveries, IdNumberKey(job_id, delivery.group()), delivery.SerializeAsString());
    }
    return store_->Commit(std::move(batch));
  }

  absl::StatusOr<std::vector<journal::Delivery>> Deliveries(std::string_view job_id) override {
    std::vector<journal::Delivery> deliveries;
    RETURN_IF_ERROR(store_->Scan(
        kDeliveries, IdPrefix(job_id),
        [&](std::string_view key, std::string_view payload) -> absl::Status {
          journal::Delivery delivery;
          if (!delivery.ParseFromArray(payload.data(), static_cast<int>(payload.size())) ||
              delivery.group() != NumberOfKey(key)) {
            return absl::DataLossError(
                fmt::format("delivery {} of job \"{}\" is not the Delivery of its group",
                            NumberOfKey(key), job_id));
          }
          deliveries.push_back(std::move(delivery));
          return absl::OkStatus();
        }));
    return deliveries;
  }

 private:
  absl::StatusOr<std::vector<journal::TrajectoryEntry>> ReadStored(std::string_view trajectory_id) {
    std::vector<journal::TrajectoryEntry> entries;
    RETURN_IF_ERROR(store_->Scan(
        kEntries, IdPrefix(trajectory_id),
        [&](std::string_view key, std::string_view payload) -> absl::Status {
          if (NumberOfKey(key) != entries.size()) {
            return absl::DataLossError(fmt::format("trajectory \"{}\" lacks entry {} of its log",
                                                   trajectory_id, entries.size()));
          }
          journal::TrajectoryEntry entry;
          if (!entry.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) {
            return absl::DataLossError(
                fmt::format("entry {} of trajectory \"{}\" is not a TrajectoryEntry",
                            entries.size(), trajectory_id));
          }
          entries.push_back(std::move(entry));
          return absl::OkStatus();
        }));
    if (entries.empty()) {
      return absl::NotFoundError(
          fmt::format("there is no trajectory \"{}\" in this state directory", trajectory_id));
    }
    return entries;
  }

  static absl::StatusOr<journal::TrajectoryHead> ParseHead(std::string_view key,
                                                           std::string_view payload) {
    journal::TrajectoryHead head;
    if (!head.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) {
      return absl::DataLossError(
          fmt::format("the head of trajectory \"{}\" is not a TrajectoryHead", key));
    }
    return head;
  }

  static absl::Status Dropped(std::string_view trajectory_id,
                              const journal::TrajectoryHead& head) {
    return absl::NotFoundError(fmt::format(
        "trajectory \"{}\" was dropped by the retention policy; {}", trajectory_id,
        head.exported().empty() ? "its record was not kept"
                                : fmt::format("its record is {}", head.exported())));
  }

  absl::StatusOr<std::vector<journal::TrajectoryEntry>> ReadArchived(
      const journal::TrajectoryHead& head) const {
    if (archive_.has_value()) return archive_->Read(head);
    return absl::FailedPreconditionError(
        fmt::format("it is in {}, and this log was opened without its archive", head.file()));
  }

  static absl::StatusOr<journal::JobRecord> ParseJob(std::string_view key,
                                                     std::string_view payload) {
    journal::JobRecord job;
    if (!job.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) {
      return absl::DataLossError(fmt::format("the record of job \"{}\" is not a JobRecord", key));
    }
    return job;
  }

  // Checks every number before it takes any, so that a refused call changes nothing.
  absl::Status FillBatch(const std::vector<Append>& appends, storage::Batch* batch)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::map<std::string, uint64_t> next;
    for (const Append& append : appends) {
      auto it = next.find(append.trajectory_id);
      if (it == next.end()) {
        ASSIGN_OR_RETURN(uint64_t length, Length(append.trajectory_id));
        it = next.emplace(append.trajectory_id, length).first;
      }
      if (append.index != it->second) {
        return absl::InvalidArgumentError(
            fmt::format("trajectory \"{}\" has {} entries, so the next is not {}",
                        append.trajectory_id, it->second, append.index));
      }
      ++it->second;
      if (append.index == 0) batch->Put(kHeads, append.trajectory_id, "");
      batch->Put(kEntries, IdNumberKey(append.trajectory_id, append.index),
                 append.entry.SerializeAsString());
    }
    for (auto& [id, length] : next) length_[id] = length;
    return absl::OkStatus();
  }

  absl::StatusOr<uint64_t> Length(const std::string& trajectory_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    auto it = length_.find(trajectory_id);
    if (it != length_.end()) return it->second;
    uint64_t length = 0;
    RETURN_IF_ERROR(
        store_->Scan(kEntries, IdPrefix(trajectory_id), [&](std::string_view, std::string_view) {
          ++length;
          return absl::OkStatus();
        }));
    if (length == 0) {
      absl::StatusOr<journal::TrajectoryHead> head = Head(trajectory_id);
      if (head.ok()) length = head->entries();
      if (!head.ok() && !absl::IsNotFound(head.status())) return head.status();
    }
    return length_.emplace(trajectory_id, length).first->second;
  }

  storage::Store* const store_;
  const std::optional<Archive> archive_;
  absl::Mutex mutex_;
  std::map<std::string, uint64_t> length_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::vector<std::string> TrajectoryLogFamilies() {
  return {"jobs", "heads", "entries", "deliveries", "weights"};
}

absl::StatusOr<std::unique_ptr<TrajectoryLog>> TrajectoryLog::Open(storage::Store* store,
                                                                   const std::string& archive,
                                                                   rocksdb::Env* env) {
  std::optional<Archive> opened;
  if (!archive.empty()) {
    ASSIGN_OR_RETURN(opened, Archive::Open(archive, env));
  }
  auto log = std::make_unique<TrajectoryLogImpl>(store, std::move(opened));
  RETURN_IF_ERROR(log->SweepArchive());
  return log;
}

}  // namespace reprise::replay
