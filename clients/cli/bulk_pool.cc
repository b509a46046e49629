#include "clients/cli/bulk_pool.h"

#include <functional>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "base/fd.h"
#include "base/status_macros.h"
#include "clients/cli/context.h"
#include "clients/cli/sandbox_verbs.h"
#include "clients/cli/wire_json.h"

namespace reprise::cli {
namespace {

// How far results may run ahead of the first that is missing: bounds the memory that they wait in.
constexpr size_t kAheadMax = 4096;
// Longer than any call may take.
constexpr absl::Duration kCallPatience = absl::Hours(8 * 24);
constexpr absl::Duration kProgressEvery = absl::Milliseconds(200);

// An ending that says nothing about the program.
bool IsPlatformFailure(sandbox_wire::Outcome outcome) {
  return outcome == sandbox_wire::OUTCOME_SETUP_FAILED ||
         outcome == sandbox_wire::OUTCOME_SANDBOX_LOST ||
         outcome == sandbox_wire::OUTCOME_INTERRUPTED;
}

}  // namespace

absl::Status BulkPool::Run(int parallel,
                           const std::function<void(const BulkCounts&)>& on_progress) {
  {
    absl::MutexLock lock(&mutex_);
    working_ = parallel;
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < parallel; ++i) threads.emplace_back([this] { Work(); });
  while (true) {
    BulkCounts now;
    bool ended = false;
    {
      absl::MutexLock lock(&mutex_);
      auto done = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return working_ == 0; };
      ended = mutex_.AwaitWithTimeout(absl::Condition(&done), kProgressEvery);
      now = counts_;
    }
    on_progress(now);
    if (ended) break;
  }
  for (std::thread& thread : threads) thread.join();
  absl::MutexLock lock(&mutex_);
  return failure_;
}

void BulkPool::Stop() {
  absl::MutexLock lock(&mutex_);
  stopped_ = true;
}

BulkCounts BulkPool::counts() const {
  absl::MutexLock lock(&mutex_);
  return counts_;
}

void BulkPool::Work() {
  for (size_t index; Next(&index);) {
    absl::StatusOr<BulkLine> line = file_->Read(index);
    absl::StatusOr<std::string> result =
        line.ok() ? RunLine(*line) : absl::StatusOr<std::string>(line.status());
    if (result.ok()) {
      Finish(index, *std::move(result));
    } else {
      Fail(result.status());
    }
  }
  absl::MutexLock lock(&mutex_);
  --working_;
}

bool BulkPool::Next(size_t* index) {
  absl::MutexLock lock(&mutex_);
  auto may = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return stopped_ || next_ >= file_->size() || next_ < counts_.written + kAheadMax;
  };
  mutex_.Await(absl::Condition(&may));
  if (stopped_ || next_ >= file_->size()) return false;
  *index = next_++;
  return true;
}

void BulkPool::Fail(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  if (failure_.ok() && !stopped_) failure_ = status;
  stopped_ = true;
}

void BulkPool::Finish(size_t index, std::string line) {
  absl::MutexLock lock(&mutex_);
  ++counts_.done;
  waiting_[index] = std::move(line);
  while (!waiting_.empty() && waiting_.begin()->first == counts_.written) {
    absl::Status written = base::WriteAll(out_, waiting_.begin()->second, "cannot write results");
    if (!written.ok()) {
      if (failure_.ok()) failure_ = written;
      stopped_ = true;
      return;
    }
    waiting_.erase(waiting_.begin());
    ++counts_.written;
  }
}

absl::StatusOr<sandboxd::SandboxClient::Finished> BulkPool::Execute(const BulkLine& line) {
  absl::Time deadline = absl::Now() + kCallPatience;
  // First without making the sandbox: a call that is in the journal needs none.
  auto finished = client_->ExecuteToEnd(line.request, deadline);
  if (!absl::IsNotFound(finished.status())) return finished;
  sandbox_wire::CreateRequest create;
  create.set_sandbox_id(line.request.sandbox_id());
  *create.mutable_spec() = line.spec;
  RETURN_IF_ERROR(client_->Create(create, deadline).status());
  return client_->ExecuteToEnd(line.request, deadline);
}

absl::StatusOr<std::string> BulkPool::RunLine(const BulkLine& line) {
  Json out = {{"id", line.id}};
  auto finished = Execute(line);
  if (line.spec.tier() != sandbox_wire::TIER_FUNCTION && finished.ok()) {
    // One sandbox a line: nothing of it is needed any more. A failure here leaves a sandbox that
    // `sandbox ls` shows, and the result stands.
    client_->Stop(line.request.sandbox_id(), absl::Now() + kCallPatience).status().IgnoreError();
  }
  // Shutdown, or nobody listens any more: that says nothing about the line, whose call may go on,
  // and the same command finds it.
  if (absl::IsCancelled(finished.status()) || absl::IsUnavailable(finished.status()))
    return finished.status();
  {
    absl::MutexLock lock(&mutex_);
    if (finished.ok()) {
      const sandbox_wire::Result& result = finished->result;
      ++counts_.outcomes[result.outcome()];
      bool clean = result.outcome() == sandbox_wire::OUTCOME_EXITED && result.exit_code() == 0;
      if (clean) ++counts_.exited_0;
      if (result.replayed()) ++counts_.replayed;
    } else {
      ++counts_.errors;
    }
    if (!finished.ok() || IsPlatformFailure(finished->result.outcome())) {
      ++counts_.not_run;
      if (counts_.first_error.empty())
        counts_.first_error =
            line.id + ": " +
            (finished.ok() ? Ending(finished->result) : Message(finished.status()));
    }
  }
  if (finished.ok()) {
    out.update(ToJson(finished->result));
    out["call_id"] = finished->call_id;
    PutBytes(&out, "stdout", finished->out);
    PutBytes(&out, "stderr", finished->err);
    out["output_cut"] = finished->output_cut;
  } else {
    out["error"] = Message(finished.status());
  }
  return out.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace reprise::cli
