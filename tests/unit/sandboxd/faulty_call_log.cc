#include "tests/unit/sandboxd/faulty_call_log.h"

#include <utility>

#include "base/status_macros.h"

namespace reprise::sandboxd {

void FaultyCallLog::FailWrites(absl::Status status) { FailWritesAfter(0, std::move(status)); }
void FaultyCallLog::FailWritesAfter(int writes, absl::Status status) {
  absl::MutexLock lock(&mutex_);
  fault_ = std::move(status);
  writes_left_ = writes;
  failing_ = writes == 0 && !fault_.ok();
}
absl::Status FaultyCallLog::health() const {
  absl::MutexLock lock(&mutex_);
  return failing_ ? fault_ : absl::OkStatus();
}
void FaultyCallLog::HoldBegin(bool hold) {
  absl::MutexLock lock(&mutex_);
  hold_begin_ = hold;
}
void FaultyCallLog::HoldOutput(bool hold) {
  absl::MutexLock lock(&mutex_);
  hold_output_ = hold;
}
int FaultyCallLog::begins() const {
  absl::MutexLock lock(&mutex_);
  return begins_;
}
int FaultyCallLog::completes() const {
  absl::MutexLock lock(&mutex_);
  return completes_;
}

absl::Status FaultyCallLog::Write() {
  absl::MutexLock lock(&mutex_);
  if (fault_.ok()) return absl::OkStatus();
  if (!failing_ && writes_left_-- > 0) return absl::OkStatus();
  failing_ = true;
  return fault_;
}

void FaultyCallLog::WaitFor(const bool* held) {
  absl::MutexLock lock(&mutex_);
  auto free = [held]() { return !*held; };
  mutex_.Await(absl::Condition(&free));
}

absl::Status FaultyCallLog::PutSandbox(const Record& record) {
  RETURN_IF_ERROR(Write());
  return log_->PutSandbox(record);
}
absl::Status FaultyCallLog::PutSnapshot(const Snapshot& record) {
  RETURN_IF_ERROR(Write());
  return log_->PutSnapshot(record);
}
absl::Status FaultyCallLog::DropSnapshot(std::string_view sandbox_id, uint64_t number) {
  RETURN_IF_ERROR(Write());
  return log_->DropSnapshot(sandbox_id, number);
}
absl::Status FaultyCallLog::Forget(std::string_view sandbox_id) {
  RETURN_IF_ERROR(Write());
  return log_->Forget(sandbox_id);
}
absl::StatusOr<FaultyCallLog::Intent> FaultyCallLog::Begin(Intent intent) {
  WaitFor(&hold_begin_);
  RETURN_IF_ERROR(Write());
  absl::StatusOr<Intent> begun = log_->Begin(std::move(intent));
  absl::MutexLock lock(&mutex_);
  begins_ += begun.ok();
  return begun;
}
absl::Status FaultyCallLog::Rebind(std::string_view call_id, std::string_view placement,
                                   std::string_view boot_id) {
  RETURN_IF_ERROR(Write());
  return log_->Rebind(call_id, placement, boot_id);
}
absl::Status FaultyCallLog::AppendOutput(std::string_view call_id, sandbox::Stream stream,
                                         uint64_t offset, std::string_view data,
                                         uint64_t kept_bytes) {
  WaitFor(&hold_output_);
  RETURN_IF_ERROR(Write());
  return log_->AppendOutput(call_id, stream, offset, data, kept_bytes);
}
absl::Status FaultyCallLog::Complete(std::string_view call_id, const sandbox::Result& result) {
  RETURN_IF_ERROR(Write());
  absl::Status status = log_->Complete(call_id, result);
  absl::MutexLock lock(&mutex_);
  completes_ += status.ok();
  return status;
}

}  // namespace reprise::sandboxd
