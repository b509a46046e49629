#include "tests/unit/sandboxd/memory_call_log.h"

#include <utility>

#include "base/clock.h"

namespace reprise::sandboxd {

namespace journal = replay::journal;

void MemoryCallLog::FailWrites(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  fault_ = std::move(status);
}
absl::Status MemoryCallLog::health() {
  absl::MutexLock lock(&mutex_);
  return fault_;
}
void MemoryCallLog::HoldBegin(bool hold) {
  absl::MutexLock lock(&mutex_);
  hold_begin_ = hold;
}
int MemoryCallLog::begins() const {
  absl::MutexLock lock(&mutex_);
  return begins_;
}
int MemoryCallLog::rebinds() const {
  absl::MutexLock lock(&mutex_);
  return rebinds_;
}
int MemoryCallLog::completes() const {
  absl::MutexLock lock(&mutex_);
  return completes_;
}
std::string MemoryCallLog::KeptOutput(const std::string& call_id, sandbox::Stream stream) {
  absl::MutexLock lock(&mutex_);
  std::string data;
  for (const auto& chunk : calls_[call_id].output) {
    if (chunk.stream() == stream) data += chunk.data();
  }
  return data;
}
void MemoryCallLog::SetBootId(const std::string& boot_id) {
  absl::MutexLock lock(&mutex_);
  for (auto& [id, entry] : calls_) entry.found.intent.set_boot_id(boot_id);
}

absl::Status MemoryCallLog::PutSandbox(const Record& record) {
  absl::MutexLock lock(&mutex_);
  if (!fault_.ok()) return fault_;
  sandboxes_[record.id()] = record;
  return absl::OkStatus();
}
absl::StatusOr<MemoryCallLog::Record> MemoryCallLog::GetSandbox(std::string_view id) {
  absl::MutexLock lock(&mutex_);
  auto found = sandboxes_.find(id);
  if (found == sandboxes_.end()) return absl::NotFoundError("no such sandbox");
  return found->second;
}
absl::StatusOr<std::vector<MemoryCallLog::Record>> MemoryCallLog::ListSandboxes() {
  absl::MutexLock lock(&mutex_);
  std::vector<Record> records;
  for (const auto& [id, record] : sandboxes_) records.push_back(record);
  return records;
}

absl::StatusOr<replay::CallLog::Found> MemoryCallLog::Find(const sandbox::ExecuteRequest& request) {
  absl::StatusOr<Found> found = FindById(request.call_id());
  if (found.ok() && found->intent.request_digest() != replay::RequestDigest(request)) {
    return absl::FailedPreconditionError("divergence: the request differs");
  }
  return found;
}
absl::StatusOr<replay::CallLog::Found> MemoryCallLog::FindById(std::string_view call_id) {
  absl::MutexLock lock(&mutex_);
  auto found = calls_.find(call_id);
  if (found == calls_.end()) return absl::NotFoundError("no such call");
  return found->second.found;
}

absl::StatusOr<journal::CallIntent> MemoryCallLog::Begin(journal::CallIntent intent) {
  absl::MutexLock lock(&mutex_);
  auto free = [this]() { return !hold_begin_; };
  mutex_.Await(absl::Condition(&free));
  if (!fault_.ok()) return fault_;
  if (calls_.count(intent.call_id()) != 0) return absl::AlreadyExistsError("the call exists");
  ++begins_;
  intent.set_ordinal(order_.size());
  intent.set_request_digest(replay::RequestDigest(intent.request()));
  *intent.mutable_request() = replay::RedactSecrets(intent.request());
  intent.set_intent_us(base::WallMicros());
  calls_[intent.call_id()].found.intent = intent;
  order_.push_back(intent.call_id());
  return intent;
}
absl::Status MemoryCallLog::Rebind(std::string_view call_id, std::string_view placement, std::string_view boot_id) {
  absl::MutexLock lock(&mutex_);
  if (!fault_.ok()) return fault_;
  auto found = calls_.find(call_id);
  if (found == calls_.end()) return absl::NotFoundError("no such call");
  if (found->second.found.result.has_value()) return absl::AlreadyExistsError("it has a result");
  ++rebinds_;
  found->second.found.intent.set_placement(std::string(placement));
  found->second.found.intent.set_boot_id(std::string(boot_id));
  found->second.output.clear();
  found->second.offsets = {};
  found->second.kept = 0;
  return absl::OkStatus();
}

absl::Status MemoryCallLog::AppendOutput(std::string_view call_id, sandbox::Stream stream, uint64_t offset,
                                         std::string_view data, uint64_t kept_bytes) {
  constexpr size_t kChunk = 64u << 10;
  absl::MutexLock lock(&mutex_);
  if (!fault_.ok()) return fault_;
  auto found = calls_.find(call_id);
  if (found == calls_.end()) return absl::NotFoundError("no such call");
  Entry& entry = found->second;
  uint64_t& next = stream == sandbox::STREAM_STDERR ? entry.offsets.stderr_bytes : entry.offsets.stdout_bytes;
  if (offset != next) return absl::InternalError("output out of order");
  next += data.size();
  for (size_t at = 0; at < data.size(); at += kChunk) {
    journal::CallOutput chunk;
    chunk.set_stream(stream);
    chunk.set_offset(offset + at);
    chunk.set_data(std::string(data.substr(at, kChunk)));
    entry.kept += chunk.data().size();
    entry.output.push_back(std::move(chunk));
  }
  while (entry.kept > kept_bytes && entry.output.size() > 1) {
    entry.kept -= entry.output.front().data().size();
    entry.output.erase(entry.output.begin());
  }
  return absl::OkStatus();
}
absl::StatusOr<replay::CallLog::Offsets> MemoryCallLog::OutputOffsets(std::string_view call_id) {
  absl::MutexLock lock(&mutex_);
  auto found = calls_.find(call_id);
  if (found == calls_.end()) return absl::NotFoundError("no such call");
  return found->second.offsets;
}
absl::Status MemoryCallLog::ReadOutput(std::string_view call_id,
                                       const std::function<absl::Status(const journal::CallOutput&)>& visit) {
  std::vector<journal::CallOutput> output;
  {
    absl::MutexLock lock(&mutex_);
    auto found = calls_.find(call_id);
    if (found == calls_.end()) return absl::NotFoundError("no such call");
    output = found->second.output;
  }
  for (const auto& chunk : output) {
    if (absl::Status status = visit(chunk); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status MemoryCallLog::Complete(std::string_view call_id, const sandbox::Result& result) {
  absl::MutexLock lock(&mutex_);
  if (!fault_.ok()) return fault_;
  auto found = calls_.find(call_id);
  if (found == calls_.end()) return absl::NotFoundError("no such call");
  if (found->second.found.result.has_value()) return absl::AlreadyExistsError("it has a result");
  ++completes_;
  journal::CallResult record;
  record.set_call_id(std::string(call_id));
  *record.mutable_result() = result;
  record.set_result_us(base::WallMicros());
  found->second.found.result = std::move(record);
  return absl::OkStatus();
}
absl::StatusOr<std::vector<journal::CallIntent>> MemoryCallLog::Running() {
  absl::MutexLock lock(&mutex_);
  std::vector<journal::CallIntent> running;
  for (const std::string& id : order_) {
    if (!calls_[id].found.result.has_value()) running.push_back(calls_[id].found.intent);
  }
  return running;
}
absl::StatusOr<std::vector<replay::CallLog::Found>> MemoryCallLog::ListCalls(std::string_view sandbox_id) {
  absl::MutexLock lock(&mutex_);
  std::vector<Found> calls;
  for (const std::string& id : order_) {
    if (calls_[id].found.intent.sandbox_id() == sandbox_id) calls.push_back(calls_[id].found);
  }
  return calls;
}

}  // namespace reprise::sandboxd
