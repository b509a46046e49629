// A call log in memory with switches for the faults that a disk has, for tests of what stands on it. Survives the
// managers that use it, as the real one survives a daemon.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "replay/call_log.h"

namespace reprise::sandboxd {

class MemoryCallLog final : public replay::CallLog {
 public:
  using Record = replay::journal::SandboxRecord;

  // From now on writes fail with `status` (as a store does after its first failed write); OK heals it.
  void FailWrites(absl::Status status);
  absl::Status health();
  // The next Begin waits until this is called with false.
  void HoldBegin(bool hold);
  int begins() const;
  int rebinds() const;
  int completes() const;
  std::string KeptOutput(const std::string& call_id, sandbox::Stream stream);
  // Rewrites the boot id of every intent, as if the machine had been restarted.
  void SetBootId(const std::string& boot_id);

  absl::Status PutSandbox(const Record& record) override;
  absl::StatusOr<Record> GetSandbox(std::string_view id) override;
  absl::StatusOr<std::vector<Record>> ListSandboxes() override;
  absl::StatusOr<Found> Find(const sandbox::ExecuteRequest& request) override;
  absl::StatusOr<Found> FindById(std::string_view call_id) override;
  absl::StatusOr<replay::journal::CallIntent> Begin(replay::journal::CallIntent intent) override;
  absl::Status Rebind(std::string_view call_id, std::string_view placement, std::string_view boot_id) override;
  absl::Status AppendOutput(std::string_view call_id, sandbox::Stream stream, uint64_t offset, std::string_view data,
                            uint64_t kept_bytes) override;
  absl::StatusOr<Offsets> OutputOffsets(std::string_view call_id) override;
  absl::Status ReadOutput(std::string_view call_id,
                          const std::function<absl::Status(const replay::journal::CallOutput&)>& visit) override;
  absl::Status Complete(std::string_view call_id, const sandbox::Result& result) override;
  absl::StatusOr<std::vector<replay::journal::CallIntent>> Running() override;
  absl::StatusOr<std::vector<Found>> ListCalls(std::string_view sandbox_id) override;

 private:
  struct Entry {
    Found found;
    std::vector<replay::journal::CallOutput> output;
    Offsets offsets;
    uint64_t kept = 0;
  };
  mutable absl::Mutex mutex_;
  std::map<std::string, Record, std::less<>> sandboxes_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Entry, std::less<>> calls_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> order_ ABSL_GUARDED_BY(mutex_);
  absl::Status fault_ ABSL_GUARDED_BY(mutex_);
  bool hold_begin_ ABSL_GUARDED_BY(mutex_) = false;
  int begins_ ABSL_GUARDED_BY(mutex_) = 0, rebinds_ ABSL_GUARDED_BY(mutex_) = 0, completes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace reprise::sandboxd
