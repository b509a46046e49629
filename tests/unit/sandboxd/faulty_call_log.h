// The real call log with switches for the faults that a disk has and for moments that tests need to
// hold, and counters of what was written.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "replay/call_log.h"

namespace reprise::sandboxd {

namespace sandbox = ::reprise::sandbox::v1;

class FaultyCallLog final : public replay::CallLog {
 public:
  using Record = replay::journal::SandboxRecord;
  using Intent = replay::journal::CallIntent;
  using Snapshot = replay::journal::SnapshotRecord;

  explicit FaultyCallLog(std::unique_ptr<replay::CallLog> log) : log_(std::move(log)) {}

  // From now on writes fail with `status`, as those of a store do after its first failed write.
  void FailWrites(absl::Status status);
  // The same, once `writes` more have worked.
  void FailWritesAfter(int writes, absl::Status status);
  absl::Status health() const;
  // Begin waits while this is held.
  void HoldBegin(bool hold);
  // AppendOutput waits while this is held.
  void HoldOutput(bool hold);
  int begins() const;
  int completes() const;

  absl::Status PutSandbox(const Record& record) override;
  absl::StatusOr<Record> GetSandbox(std::string_view id) override { return log_->GetSandbox(id); }
  absl::StatusOr<std::vector<Record>> ListSandboxes() override { return log_->ListSandboxes(); }
  absl::Status PutSnapshot(const Snapshot& record) override;
  absl::Status DropSnapshot(std::string_view sandbox_id, uint64_t number) override;
  absl::StatusOr<std::vector<Snapshot>> ListSnapshots(std::string_view sandbox_id) override {
    return log_->ListSnapshots(sandbox_id);
  }
  absl::StatusOr<uint64_t> CountCalls(std::string_view sandbox_id) override {
    return log_->CountCalls(sandbox_id);
  }
  absl::StatusOr<Found> Find(const sandbox::ExecuteRequest& request) override {
    return log_->Find(request);
  }
  absl::StatusOr<Found> FindById(std::string_view call_id) override {
    return log_->FindById(call_id);
  }
  absl::StatusOr<Intent> Begin(Intent intent) override;
  absl::Status Rebind(std::string_view call_id, std::string_view placement,
                      std::string_view boot_id) override;
  absl::Status AppendOutput(std::string_view call_id, sandbox::Stream stream, uint64_t offset,
                            std::string_view data, uint64_t kept_bytes) override;
  absl::StatusOr<Offsets> OutputOffsets(std::string_view call_id) override {
    return log_->OutputOffsets(call_id);
  }
  absl::Status ReadOutput(
      std::string_view call_id,
      const std::function<absl::Status(const replay::journal::CallOutput&)>& visit) override {
    return log_->ReadOutput(call_id, visit);
  }
  absl::Status Complete(std::string_view call_id, const sandbox::Result& result) override;
  absl::StatusOr<std::vector<Intent>> Running() override { return log_->Running(); }
  absl::Status Forget(std::string_view sandbox_id) override;
  absl::StatusOr<std::vector<Found>> ListCalls(std::string_view sandbox_id) override {
    return log_->ListCalls(sandbox_id);
  }

 private:
  absl::Status Write() ABSL_LOCKS_EXCLUDED(mutex_);  // counts one, or refuses it
  void WaitFor(const bool* held) ABSL_LOCKS_EXCLUDED(mutex_);

  const std::unique_ptr<replay::CallLog> log_;
  mutable absl::Mutex mutex_;
  absl::Status fault_ ABSL_GUARDED_BY(mutex_);
  bool failing_ ABSL_GUARDED_BY(mutex_) = false;
  int writes_left_ ABSL_GUARDED_BY(mutex_) = 0;
  bool hold_begin_ ABSL_GUARDED_BY(mutex_) = false, hold_output_ ABSL_GUARDED_BY(mutex_) = false;
  int begins_ ABSL_GUARDED_BY(mutex_) = 0, completes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace reprise::sandboxd
