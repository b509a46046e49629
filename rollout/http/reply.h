// The answers to one request on their way to the client: what the engine thread tells is queued,
// and turned into text on another thread, as one body or as a stream of pieces. It ends the
// generations when the client goes away.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "rollout/http/generation.h"
#include "rollout/http/http_metrics.h"
#include "rollout/http/names.h"
#include "rollout/tool_pool.h"

namespace reprise::rollout::http {

// Makes the text of one protocol. Never two calls at a time.
class Formatter {
 public:
  virtual ~Formatter() = default;
  virtual void OnBegun(size_t choice, int64_t cached_tokens) = 0;
  // Each gives what is to be sent now; "" for a request that is answered whole.
  virtual std::string Begin() = 0;
  virtual std::string OnToken(size_t choice, const TokenOut& token) = 0;
  virtual std::string OnFinish(size_t choice, const FinishOut& finish) = 0;
  virtual std::string End() = 0;                             // all choices are finished
  virtual std::string OnError(const absl::Status& why) = 0;  // in the middle of a stream
  virtual web::Response Whole() = 0;                         // after all choices are finished
  virtual web::Response Failed(const absl::Status& why) = 0;
};

class Reply final : public GenerationSink, public std::enable_shared_from_this<Reply> {
 public:
  // `pool` outlives this. `on_end`: once, when nothing more will be sent.
  Reply(std::unique_ptr<Formatter> formatter, size_t choices, ToolPool* pool,
        std::shared_ptr<HttpMetrics> metrics, std::function<void(const absl::Status&)> on_end);

  // Before the scheduler has them.
  void SetGenerations(std::vector<std::shared_ptr<Generation>> generations);
  // Answers whole, or with a stream. Once.
  void AnswerWhole(web::Respond respond);
  std::shared_ptr<web::BodySource> AnswerStream();
  // Nobody reads any more, or the daemon ends: what runs is stopped. Any thread.
  void Cancel(const absl::Status& why);

  void OnBegun(size_t choice, int64_t cached_tokens) override;
  void OnToken(size_t choice, TokenOut token) override;
  void OnFinish(size_t choice, FinishOut finish) override;
  void OnError(const absl::Status& why) override;

 private:
  class Source;
  struct Begun {
    int64_t cached_tokens;
  };
  struct Event {
    size_t choice = 0;
    std::variant<Begun, TokenOut, FinishOut> what;
  };
  using Deliver = std::function<void(web::BodySource::Piece)>;

  void Push(Event event);
  void Next(Deliver deliver);
  // Lets the pool turn what is queued into text, where somebody waits for it.
  void WakeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Drain();
  std::string Format(const Event& event);
  void End(const absl::Status& how);

  const std::unique_ptr<Formatter> formatter_;
  ToolPool* const pool_;
  const std::shared_ptr<HttpMetrics> metrics_;  // it outlives the port with the last answer
  const base::Stopwatch began_;
  std::vector<int64_t> last_us_;  // of each choice: when its last token came; of the engine thread

  absl::Mutex mutex_;
  // Until the end: they hold this in turn.
  std::vector<std::shared_ptr<Generation>> generations_ ABSL_GUARDED_BY(mutex_);
  std::function<void(const absl::Status&)> on_end_ ABSL_GUARDED_BY(mutex_);
  std::deque<Event> events_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  size_t unfinished_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  web::Respond respond_ ABSL_GUARDED_BY(mutex_);  // of a whole answer that was not given yet
  Deliver deliver_ ABSL_GUARDED_BY(mutex_);       // of a stream's reader that waits
  // Of the one drain at a time.
  bool begun_ = false, closed_ = false;
};

}  // namespace reprise::rollout::http
