#include "sandboxd/rerun.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd {
namespace {

constexpr absl::Duration kLookForStop = absl::Milliseconds(200);
constexpr absl::Duration kCancelWait = absl::Seconds(30);
constexpr size_t kShownBytes = 80;  // of each side of a difference

std::string Shown(std::string_view bytes) {
  std::string text;
  for (const char c : bytes.substr(0, kShownBytes)) {
    if (c == '\n') {
      text += "\\n";
    } else {
      text.push_back(static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c);
    }
  }
  return fmt::format("\"{}\"{}", text, bytes.size() > kShownBytes ? "..." : "");
}

// One stream as the log has it: the end of it, from `begin` on.
struct Stored {
  uint64_t begin = 0;
  std::string bytes;
};

// What the run gives, compared as it comes.
class Comparison {
 public:
  absl::Status Load(replay::CallLog* log, const std::string& call_id) {
    return log->ReadOutput(call_id, [&](const replay::journal::CallOutput& chunk) {
      Stored& stored = stored_[chunk.stream() == sandbox::STREAM_STDERR];
      if (stored.bytes.empty() || stored.begin + stored.bytes.size() != chunk.offset())
        stored = {chunk.offset(), ""};
      stored.bytes += chunk.data();
      return absl::OkStatus();
    });
  }

  void OnOutput(sandbox::Stream stream, uint64_t offset, std::string_view data) {
    const bool err = stream == sandbox::STREAM_STDERR;
    absl::MutexLock lock(&mutex_);
    seen_[err] = std::max(seen_[err], offset + data.size());
    news_ = true;
    if (!difference_.empty()) return;
    const Stored& stored = stored_[err];
    const uint64_t from = std::max(offset, stored.begin);
    const uint64_t end = std::min(offset + data.size(), stored.begin + stored.bytes.size());
    if (from >= end) return;
    const std::string_view was =
        std::string_view(stored.bytes).substr(from - stored.begin, end - from);
    const std::string_view is = data.substr(from - offset, end - from);
    const size_t at = std::mismatch(was.begin(), was.end(), is.begin()).first - was.begin();
    if (at == was.size()) return;
    difference_ = fmt::format("{} differs at byte {}: was {}, is {}", err ? "stderr" : "stdout",
                              from + at, Shown(was.substr(at)), Shown(is.substr(at)));
  }
  void OnEnd(sandbox::Result result) {
    absl::MutexLock lock(&mutex_);
    end_ = std::move(result);
  }

  struct News {
    uint64_t seen[2] = {0, 0};  // output so far, by stream
    bool ended = false, differs = false;
  };
  News Wait(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    auto news = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return news_ || end_.has_value(); };
    mutex_.AwaitWithTimeout(absl::Condition(&news), timeout);
    news_ = false;
    return {{seen_[0], seen_[1]}, end_.has_value(), !difference_.empty()};
  }

  // "" when everything is as it was. After the end.
  std::string Difference(const sandbox::Result& was) {
    absl::MutexLock lock(&mutex_);
    if (!difference_.empty()) return difference_;
    const sandbox::Result& is = *end_;
    if (was.outcome() != is.outcome()) {
      return fmt::format("outcome differs: was {}, is {} ({})",
                         sandbox::Outcome_Name(was.outcome()), sandbox::Outcome_Name(is.outcome()),
                         is.message());
    }
    if (was.exit_code() != is.exit_code())
      return fmt::format("exit_code differs: was {}, is {}", was.exit_code(), is.exit_code());
    if (was.signal() != is.signal())
      return fmt::format("signal differs: was {}, is {}", was.signal(), is.signal());
    for (const bool err : {false, true}) {
      const uint64_t bytes = err ? was.stderr_bytes() : was.stdout_bytes();
      if (bytes == seen_[err]) continue;
      return fmt::format("{} differs in length: was {} bytes, is {}", err ? "stderr" : "stdout",
                         bytes, seen_[err]);
    }
    return "";
  }

 private:
  absl::Mutex mutex_;
  Stored stored_[2];  // constant after Load
  uint64_t seen_[2] ABSL_GUARDED_BY(mutex_) = {0, 0};
  bool news_ ABSL_GUARDED_BY(mutex_) = false;
  std::string difference_ ABSL_GUARDED_BY(mutex_);
  std::optional<sandbox::Result> end_ ABSL_GUARDED_BY(mutex_);
};

class Sink final : public CallSink {
 public:
  explicit Sink(std::shared_ptr<Comparison> to) : to_(std::move(to)) {}
  void OnStarted(std::vector<sandbox::StepTime>) override {}
  void OnOutput(sandbox::Stream stream, uint64_t offset, std::string_view data) override {
    to_->OnOutput(stream, offset, data);
  }
  void OnEnd(sandbox::Result result) override { to_->OnEnd(std::move(result)); }

 private:
  const std::shared_ptr<Comparison> to_;
};

absl::Status CheckRepeatable(const replay::CallLog::Found& call) {
  auto refuse = [&](std::string_view why) {
    return absl::FailedPreconditionError(
        fmt::format("call {} cannot be made again: {}", call.intent.call_id(), why));
  };
  if (!call.result.has_value()) return refuse("it has no result");
  if (HasSecrets(call.intent.request().env())) return refuse("it had secret variables");
  switch (call.result->result().outcome()) {
    case sandbox::OUTCOME_EXITED:
    case sandbox::OUTCOME_SIGNALED:
    case sandbox::OUTCOME_TIMED_OUT:
    case sandbox::OUTCOME_MEMORY_EXCEEDED:
    case sandbox::OUTCOME_OUTPUT_TRUNCATED:
    case sandbox::OUTCOME_POLICY_VIOLATION:
      return absl::OkStatus();
    default:
      return refuse(fmt::format("it ended with {}, nobody knows after how much of it",
                                sandbox::Outcome_Name(call.result->result().outcome())));
  }
}

}  // namespace

bool LeftNothing(const sandbox::Result& result) {
  return result.outcome() == sandbox::OUTCOME_SETUP_FAILED;
}

absl::Status RunAgain(Substrate* substrate, const SandboxRef& sandbox, replay::CallLog* log,
                      const replay::CallLog::Found& call, const sandbox::ExecuteRequest& resolved,
                      const std::function<bool()>& stopping) {
  RETURN_IF_ERROR(CheckRepeatable(call));
  auto comparison = std::make_shared<Comparison>();
  RETURN_IF_ERROR(comparison->Load(log, call.intent.call_id()));
  ASSIGN_OR_RETURN(const std::string placement, substrate->Reserve(sandbox));
  absl::StatusOr<std::unique_ptr<RunningCall>> running =
      substrate->Start(sandbox, placement, resolved, std::make_unique<Sink>(comparison));
  if (!running.ok()) {
    substrate->Unreserve(placement);
    return running.status();
  }
  bool cancelled = false;
  while (true) {
    const Comparison::News news = comparison->Wait(cancelled ? kCancelWait : kLookForStop);
    (*running)->Acknowledge(sandbox::STREAM_STDOUT, news.seen[0]);
    (*running)->Acknowledge(sandbox::STREAM_STDERR, news.seen[1]);
    if (news.ended) break;
    if (cancelled) return absl::DeadlineExceededError("a call that was run again does not end");
    if (!news.differs && !stopping()) continue;
    // The sandbox goes as well: what the call still does is of no interest.
    // It may have ended by itself.
    if (absl::Status ended = (*running)->Cancel(); !ended.ok() && !absl::IsNotFound(ended))
      return ended;
    cancelled = true;
  }
  (*running)->Release();
  const std::string difference = comparison->Difference(call.result->result());
  if (cancelled && stopping()) return absl::UnavailableError("sandboxd is stopping: try again");
  if (difference.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("DIVERGED: call {}: {}", call.intent.call_id(), difference));
}

}  // namespace reprise::sandboxd
