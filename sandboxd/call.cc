#include "sandboxd/call.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/failpoint.h"
#include "base/format.h"
#include "base/log.h"

namespace reprise::sandboxd {

// Keeps the call alive while a substrate may still report to it.
class Call::Sink final : public CallSink {
 public:
  explicit Sink(std::shared_ptr<Call> call) : call_(std::move(call)) {}
  void OnStarted(std::vector<sandbox::StepTime> steps) override {
    call_->OnStarted(std::move(steps));
  }
  void OnOutput(sandbox::Stream stream, uint64_t offset, std::string_view data) override {
    call_->OnOutput(stream, offset, data);
  }
  void OnEnd(sandbox::Result result) override { call_->OnEnd(std::move(result)); }

 private:
  const std::shared_ptr<Call> call_;
};

sandbox::Result MakeResult(sandbox::Outcome outcome, std::string message) {
  sandbox::Result result;
  result.set_outcome(outcome);
  result.set_message(std::move(message));
  return result;
}

sandbox::Result NotStarted(const absl::Status& why) {
  return MakeResult(
      absl::IsUnavailable(why) ? sandbox::OUTCOME_SANDBOX_LOST : sandbox::OUTCOME_SETUP_FAILED,
      std::string(why.message()));
}

Call::Call(const Host* host, std::string id, std::string sandbox_id)
    : host_(host), id_(std::move(id)), sandbox_id_(std::move(sandbox_id)) {}

// ---- admission

bool Call::decided() const {
  absl::MutexLock lock(&mutex_);
  return decided_;
}

void Call::WhenDecided(std::function<void()> retry) {
  {
    absl::MutexLock lock(&mutex_);
    if (!decided_) {
      waiters_.push_back(std::move(retry));
      return;
    }
  }
  retry();
}

void Call::MarkBegun(uint64_t kept_bytes, replay::CallLog::Offsets offsets) {
  std::vector<std::function<void()>> waiters;
  {
    absl::MutexLock lock(&mutex_);
    decided_ = true;
    kept_bytes_ = kept_bytes;
    since_begun_ = base::Stopwatch();
    totals_[sandbox::STREAM_STDOUT] = offsets.stdout_bytes;
    totals_[sandbox::STREAM_STDERR] = offsets.stderr_bytes;
    waiters.swap(waiters_);
  }
  for (auto& waiter : waiters) waiter();
}

void Call::Abandon(const absl::Status& status) {
  std::vector<std::function<void()>> waiters;
  std::vector<std::shared_ptr<CallStream>> readers;
  std::shared_ptr<RunningCall> running;
  {
    absl::MutexLock lock(&mutex_);
    decided_ = true;
    if (failure_.ok()) failure_ = status;
    waiters.swap(waiters_);
    readers.swap(readers_);
    running = std::move(running_);
    pending_.clear();
    pending_bytes_ = 0;
  }
  for (auto& reader : readers) reader->Fail(status);
  for (auto& waiter : waiters) waiter();
}

void Call::AddReader(std::shared_ptr<CallStream> stream, bool attached) {
  absl::Status failure;
  std::optional<sandbox::Result> result;
  {
    absl::MutexLock lock(&mutex_);
    failure = failure_;
    result = result_;
    if (failure.ok() && !result.has_value()) {
      std::erase_if(readers_, [](const auto& reader) { return reader->failed(); });
      readers_.push_back(stream);
    }
  }
  // Registered first: the pass over the journal that Begin asks for starts later, so that every
  // byte is in that pass or was pushed.
  stream->Begin(id_, /*replayed=*/false, attached || result.has_value());
  if (!failure.ok()) {
    stream->Fail(failure);
  } else if (result.has_value()) {
    stream->Finish(*result);
  }
}

void Call::Park(std::string reason) {
  base::LogWarn(fmt::format("call {} waits: {}", id_, reason));
  absl::MutexLock lock(&mutex_);
  parked_ = true;
}

bool Call::Unpark() {
  absl::MutexLock lock(&mutex_);
  return std::exchange(parked_, false);
}

bool Call::parked() const {
  absl::MutexLock lock(&mutex_);
  return parked_;
}

// ---- the run

std::unique_ptr<CallSink> Call::MakeSink() { return std::make_unique<Sink>(shared_from_this()); }

void Call::SetRunning(std::unique_ptr<RunningCall> running) {
  std::shared_ptr<RunningCall> cancel;
  {
    absl::MutexLock lock(&mutex_);
    if (!failure_.ok()) return;  // dropping it detaches
    running_ = std::move(running);
    ready_ = true;
    if (cancelled_) cancel = running_;
    ScheduleDrain();
  }
  if (cancel == nullptr) return;
  if (absl::Status status = cancel->Cancel(); !status.ok()) {
    base::LogWarn(fmt::format("call {} cannot be cancelled: {}", id_, status.message()));
  }
}

void Call::EndWith(sandbox::Result result) {
  absl::MutexLock lock(&mutex_);
  if (end_.has_value() || result_.has_value()) return;
  end_ = std::move(result);
  ready_ = true;
  ScheduleDrain();
}

void Call::OnStarted(std::vector<sandbox::StepTime> steps) {
  absl::MutexLock lock(&mutex_);
  steps_ = std::move(steps);
}

void Call::OnOutput(sandbox::Stream stream, uint64_t offset, std::string_view data) {
  if (data.empty() || (stream != sandbox::STREAM_STDOUT && stream != sandbox::STREAM_STDERR))
    return;
  absl::MutexLock lock(&mutex_);
  auto room = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return pending_bytes_ < kPendingBytesMax || !failure_.ok();
  };
  mutex_.Await(absl::Condition(&room));
  if (!failure_.ok()) return;
  pending_bytes_ += data.size();
  if (!pending_.empty() && pending_.back().stream == stream &&
      pending_.back().offset + pending_.back().data.size() == offset) {
    pending_.back().data.append(data);
  } else {
    pending_.push_back({stream, offset, std::string(data)});
  }
  ScheduleDrain();
}

void Call::OnEnd(sandbox::Result result) {
  absl::MutexLock lock(&mutex_);
  if (end_.has_value() || result_.has_value()) return;
  end_ = std::move(result);
  ScheduleDrain();
}

void Call::ScheduleDrain() {
  if (!ready_ || draining_ || !failure_.ok()) return;
  if (pending_.empty() && !end_.has_value()) return;
  // The pool refuses only when it is closed: its queue has room for every call that may run.
  draining_ = host_->journal_pool->TryPost([self = shared_from_this()] { self->Drain(); });
}

void Call::Drain() {
  std::deque<Chunk> chunks;
  std::optional<sandbox::Result> end;
  {
    absl::MutexLock lock(&mutex_);
    draining_ = failure_.ok();
    if (!draining_) return;
    chunks.swap(pending_);
    pending_bytes_ = 0;
    end = end_;
  }
  for (const Chunk& chunk : chunks) {
    if (absl::Status status = Record(chunk); !status.ok()) {
      base::LogError(fmt::format("output of call {} cannot be written: {}", id_, status.message()));
      Abandon(status);
      return;
    }
  }
  if (end.has_value()) {
    Complete(*std::move(end));
    return;
  }
  // Back to the end of the queue rather than round again here: a call that floods must not starve
  // the others.
  absl::MutexLock lock(&mutex_);
  draining_ = false;
  ScheduleDrain();
}

absl::Status Call::Record(const Chunk& chunk) {
  uint64_t kept_bytes, next;
  {
    absl::MutexLock lock(&mutex_);
    kept_bytes = kept_bytes_;
    next = totals_[chunk.stream];
  }
  std::string_view data = chunk.data;
  uint64_t offset = chunk.offset;
  if (offset > next) {
    return absl::DataLossError(fmt::format(
        "output of call {} goes on at byte {} of {} after byte {}: the tier lost a part", id_,
        offset, sandbox::Stream_Name(chunk.stream), next));
  }
  if (offset < next) {  // an owner that repeats what the journal has
    data.remove_prefix(std::min<uint64_t>(next - offset, data.size()));
    offset = next;
  }
  if (!data.empty()) {
    absl::Status status = host_->log->AppendOutput(id_, chunk.stream, offset, data, kept_bytes);
    if (!status.ok()) return status;
  }
  std::shared_ptr<RunningCall> running;
  {
    absl::MutexLock lock(&mutex_);
    totals_[chunk.stream] = offset + data.size();
    running = running_;
  }
  if (running != nullptr) running->Acknowledge(chunk.stream, offset + data.size());
  for (const auto& reader : Readers()) {
    for (size_t at = 0; at < data.size(); at += kEventBytesMax) {
      reader->Push(chunk.stream, offset + at, data.substr(at, kEventBytesMax));
    }
  }
  return absl::OkStatus();
}

void Call::Complete(sandbox::Result result) {
  {
    absl::MutexLock lock(&mutex_);
    uint64_t written_out = totals_[sandbox::STREAM_STDOUT],
             written_err = totals_[sandbox::STREAM_STDERR];
    result.set_stdout_bytes(written_out);
    result.set_stderr_bytes(written_err);
    result.set_truncated(result.truncated() || written_out + written_err > kept_bytes_);
    result.set_replayed(false);
    if (result.steps_size() == 0) result.mutable_steps()->Assign(steps_.begin(), steps_.end());
    bool killed = result.outcome() == sandbox::OUTCOME_SIGNALED ||
                  result.outcome() == sandbox::OUTCOME_SANDBOX_LOST ||
                  result.outcome() == sandbox::OUTCOME_INTERRUPTED;
    if (cancelled_ && killed) {
      result.set_outcome(sandbox::OUTCOME_CANCELLED);
      result.set_message("cancelled by request");
    }
  }
  base::FailPoint("call.result");
  absl::Status status = host_->log->Complete(id_, result);
  if (!status.ok()) {
    base::LogError(fmt::format("result of call {} cannot be written: {}", id_, status.message()));
    Abandon(status);
    return;
  }
  host_->written(*this);
  base::FailPoint("call.completed");
  std::shared_ptr<RunningCall> running;
  std::vector<std::shared_ptr<CallStream>> readers;
  {
    absl::MutexLock lock(&mutex_);
    host_->metrics->ended[static_cast<size_t>(result.outcome()) % kOutcomes].Add();
    host_->metrics->run_seconds.Observe(static_cast<double>(since_begun_.ElapsedMicros()) / 1e6);
    result_ = result;
    running = std::move(running_);
    readers.swap(readers_);
    draining_ = false;
  }
  for (const auto& reader : readers) reader->Finish(result);
  if (running != nullptr) running->Release();
  running = nullptr;
  if (result.outcome() == sandbox::OUTCOME_SANDBOX_LOST) host_->sandbox_lost(*this);
  host_->forget(*this);
}

// ---- verbs on a running call

absl::StatusOr<std::shared_ptr<RunningCall>> Call::Owner() const {
  absl::MutexLock lock(&mutex_);
  auto started = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return ready_ || parked_ || !failure_.ok();
  };
  mutex_.AwaitWithTimeout(absl::Condition(&started), kStartWaitMax);
  if (!failure_.ok()) return failure_;
  if (running_ == nullptr || end_.has_value()) {
    return absl::FailedPreconditionError(fmt::format("call {} is not running", id_));
  }
  return running_;
}

absl::Status Call::WriteStdin(std::string_view data, bool eof) {
  absl::StatusOr<std::shared_ptr<RunningCall>> owner = Owner();
  return owner.ok() ? (*owner)->WriteStdin(data, eof) : owner.status();
}

absl::Status Call::Signal(int signal) {
  absl::StatusOr<std::shared_ptr<RunningCall>> owner = Owner();
  return owner.ok() ? (*owner)->Signal(signal) : owner.status();
}

absl::Status Call::Resize(uint32_t rows, uint32_t columns) {
  absl::StatusOr<std::shared_ptr<RunningCall>> owner = Owner();
  return owner.ok() ? (*owner)->Resize(rows, columns) : owner.status();
}

absl::Status Call::Cancel() {
  std::shared_ptr<RunningCall> running;
  {
    absl::MutexLock lock(&mutex_);
    if (!failure_.ok()) return failure_;
    if (result_.has_value() || end_.has_value()) return absl::OkStatus();
    cancelled_ = true;
    running = running_;
  }
  // Not started yet: SetRunning sees cancelled_.
  return running != nullptr ? running->Cancel() : absl::OkStatus();
}

bool Call::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

std::vector<std::shared_ptr<CallStream>> Call::Readers() {
  absl::MutexLock lock(&mutex_);
  std::erase_if(readers_, [](const auto& reader) { return reader->failed(); });
  return readers_;
}

}  // namespace reprise::sandboxd
