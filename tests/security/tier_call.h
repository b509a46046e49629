// Runs commands through a tier without a daemon, and waits for their end.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "sandboxd/limits.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

// What a call did so far. Acknowledges output when told to, as the journal would.
class CallRecord : public std::enable_shared_from_this<CallRecord> {
 public:
  class Sink final : public CallSink {
   public:
    explicit Sink(std::shared_ptr<CallRecord> record) : record_(std::move(record)) {}
    void OnStarted(std::vector<sandbox::StepTime> steps) override {
      absl::MutexLock lock(&record_->mutex_);
      record_->started_ = true;
    }
    void OnOutput(sandbox::Stream stream, uint64_t offset, std::string_view data) override {
      absl::MutexLock lock(&record_->mutex_);
      std::string& out = stream == sandbox::STREAM_STDOUT ? record_->out_ : record_->err_;
      if (offset != record_->base_ + out.size()) record_->gap_ = true;
      out += data;
      if (record_->call_ != nullptr && record_->acknowledge_) {
        record_->call_->Acknowledge(stream, record_->base_ + out.size());
      }
    }
    void OnEnd(sandbox::Result result) override {
      absl::MutexLock lock(&record_->mutex_);
      record_->result_ = std::move(result);
      record_->ended_ = true;
    }

   private:
    const std::shared_ptr<CallRecord> record_;
  };

  void Run(std::unique_ptr<RunningCall> call) {
    absl::MutexLock lock(&mutex_);
    call_ = std::move(call);
    if (!acknowledge_) return;
    call_->Acknowledge(sandbox::STREAM_STDOUT, base_ + out_.size());
    call_->Acknowledge(sandbox::STREAM_STDERR, base_ + err_.size());
  }
  // False after `timeout`.
  bool WaitEnd(absl::Duration timeout = absl::Seconds(60)) {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(&ended_), timeout);
  }
  bool WaitOutput(size_t bytes, absl::Duration timeout = absl::Seconds(60)) {
    absl::MutexLock lock(&mutex_);
    auto there = [this, bytes]()
                     ABSL_NO_THREAD_SAFETY_ANALYSIS { return out_.size() >= bytes || ended_; };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), timeout) && out_.size() >= bytes;
  }
  bool WaitText(const std::string& text, absl::Duration timeout = absl::Seconds(60)) {
    absl::MutexLock lock(&mutex_);
    auto there = [this, &text]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return out_.find(text) != std::string::npos || ended_;
    };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), timeout) &&
           out_.find(text) != std::string::npos;
  }
  void set_acknowledge(bool on) { acknowledge_ = on; }
  void set_base(uint64_t base) { base_ = base; }
  RunningCall* call() { return call_.get(); }
  void Drop() {
    absl::MutexLock lock(&mutex_);
    call_.reset();
  }
  sandbox::Result result() {
    absl::MutexLock lock(&mutex_);
    return result_;
  }
  std::string out() {
    absl::MutexLock lock(&mutex_);
    return out_;
  }
  std::string err() {
    absl::MutexLock lock(&mutex_);
    return err_;
  }
  bool gap() {
    absl::MutexLock lock(&mutex_);
    return gap_;
  }

 private:
  absl::Mutex mutex_;
  std::unique_ptr<RunningCall> call_;
  bool acknowledge_ = true;
  uint64_t base_ = 0;
  bool started_ = false, ended_ = false, gap_ = false;
  std::string out_, err_;
  sandbox::Result result_;
};

struct TierCall {
  std::string placement;
  std::shared_ptr<CallRecord> record = std::make_shared<CallRecord>();
};

inline sandbox::ExecuteRequest ShellRequest(const std::string& script,
                                            const std::string& id = "call") {
  sandbox::ExecuteRequest request;
  request.set_call_id(id);
  request.add_argv("/bin/sh");
  request.add_argv("-c");
  request.add_argv(script);
  return request;
}

// Reserves and starts; limits of the request that are 0 become the tier's.
inline absl::StatusOr<TierCall> StartCall(Substrate* tier, const SandboxRef& sandbox,
                                          const sandbox::ExecuteRequest& request,
                                          bool acknowledge = true) {
  TierCall call;
  call.record->set_acknowledge(acknowledge);
  auto placement = tier->Reserve(sandbox);
  if (!placement.ok()) return placement.status();
  call.placement = *placement;
  const sandbox::ExecuteRequest resolved =
      ResolveRequest(request, *sandbox.spec, tier->Describe().default_limits());
  auto running = tier->Start(sandbox, call.placement, resolved,
                             std::make_unique<CallRecord::Sink>(call.record));
  if (!running.ok()) return running.status();
  call.record->Run(*std::move(running));
  return call;
}

}  // namespace reprise::sandboxd
