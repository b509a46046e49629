#include "rollout/http/reply.h"

#include <algorithm>
#include <utility>

namespace reprise::rollout::http {
namespace {

constexpr absl::Duration kKeepAliveEvery = absl::Seconds(5);

}  // namespace

class Reply::Source final : public web::BodySource {
 public:
  explicit Source(std::shared_ptr<Reply> reply) : reply_(std::move(reply)) {}
  void Next(std::function<void(Piece)> deliver) override { reply_->Next(std::move(deliver)); }
  void Cancel() override { reply_->Cancel(absl::CancelledError("the client went away")); }
  // A comment, which readers of event streams drop: it finds out that a client has gone while its
  // request waits.
  std::string KeepAlive() override { return ": waiting\n\n"; }
  absl::Duration keepalive_every() const override { return kKeepAliveEvery; }

 private:
  const std::shared_ptr<Reply> reply_;
};

Reply::Reply(std::unique_ptr<Formatter> formatter, size_t choices, ToolPool* pool,
             std::shared_ptr<HttpMetrics> metrics, std::function<void(const absl::Status&)> on_end)
    : formatter_(std::move(formatter)),
      pool_(pool),
      metrics_(std::move(metrics)),
      last_us_(choices, 0),
      on_end_(std::move(on_end)),
      unfinished_(choices) {}

void Reply::SetGenerations(std::vector<std::shared_ptr<Generation>> generations) {
  absl::MutexLock lock(&mutex_);
  generations_ = std::move(generations);
}

void Reply::AnswerWhole(web::Respond respond) {
  absl::MutexLock lock(&mutex_);
  respond_ = std::move(respond);
  WakeLocked();
}

std::shared_ptr<web::BodySource> Reply::AnswerStream() {
  return std::make_shared<Source>(shared_from_this());
}

void Reply::Next(Deliver deliver) {
  absl::MutexLock lock(&mutex_);
  deliver_ = std::move(deliver);
  WakeLocked();
}

void Reply::Cancel(const absl::Status& why) {
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& generation : generations_) generation->Cancel();
  }
  OnError(why);
  End(why);
}

void Reply::Push(Event event) {
  absl::MutexLock lock(&mutex_);
  if (std::holds_alternative<FinishOut>(event.what)) --unfinished_;
  events_.push_back(std::move(event));
  WakeLocked();
}

void Reply::OnBegun(size_t choice, int64_t cached_tokens) {
  Push({.choice = choice, .what = Begun{cached_tokens}});
}
void Reply::OnToken(size_t choice, TokenOut token) {
  const int64_t now_us = began_.ElapsedMicros();
  const bool first = last_us_[choice] == 0;
  (first ? metrics_->first_token : metrics_->inter_token)
      .Observe(static_cast<double>(now_us - last_us_[choice]) / 1e6);
  last_us_[choice] = std::max<int64_t>(now_us, 1);
  metrics_->generation_tokens.Add();
  Push({.choice = choice, .what = std::move(token)});
}
void Reply::OnFinish(size_t choice, FinishOut finish) {
  metrics_->whole.Observe(static_cast<double>(began_.ElapsedMicros()) / 1e6);
  metrics_->endings[finish.reason == "length" ? HttpMetrics::kLength : HttpMetrics::kStop].Add();
  Push({.choice = choice, .what = std::move(finish)});
}

void Reply::OnError(const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  if (unfinished_ == 0 || !failure_.ok()) return;
  failure_ = why;
  metrics_->endings[absl::IsCancelled(why) ? HttpMetrics::kAborted : HttpMetrics::kFailed].Add(
      unfinished_);
  WakeLocked();
}

void Reply::WakeLocked() {
  const bool settled = unfinished_ == 0 || !failure_.ok();
  const bool wanted =
      (deliver_ != nullptr && (!events_.empty() || settled)) || (respond_ != nullptr && settled);
  if (!wanted || draining_) return;
  draining_ = true;
  pool_->Run([self = shared_from_this()] { self->Drain(); });
}

std::string Reply::Format(const Event& event) {
  if (const auto* begun = std::get_if<Begun>(&event.what)) {
    formatter_->OnBegun(event.choice, begun->cached_tokens);
    return "";
  }
  if (const auto* token = std::get_if<TokenOut>(&event.what))
    return formatter_->OnToken(event.choice, *token);
  return formatter_->OnFinish(event.choice, std::get<FinishOut>(event.what));
}

void Reply::Drain() {
  std::deque<Event> events;
  absl::Status failure;
  bool settled = false;
  Deliver deliver;
  web::Respond respond;
  {
    absl::MutexLock lock(&mutex_);
    events.swap(events_);
    failure = failure_;
    settled = unfinished_ == 0 || !failure.ok();
    deliver = std::exchange(deliver_, nullptr);
    respond = std::exchange(respond_, nullptr);
  }
  std::string piece;
  if (deliver != nullptr && !begun_ && !closed_) piece = formatter_->Begin();
  begun_ = true;
  for (const Event& event : events) piece += Format(event);
  bool ended = false;
  if (settled && !closed_) {
    closed_ = ended = true;
    piece += failure.ok() ? formatter_->End() : formatter_->OnError(failure);
  }
  if (ended) End(failure);
  if (respond != nullptr) respond(failure.ok() ? formatter_->Whole() : formatter_->Failed(failure));
  if (deliver != nullptr && !piece.empty()) {
    deliver(std::optional<std::string>(std::move(piece)));
    deliver = nullptr;
  } else if (deliver != nullptr && closed_) {
    deliver(std::optional<std::string>());
    deliver = nullptr;
  }
  absl::MutexLock lock(&mutex_);
  draining_ = false;
  // Nothing came of the events: the reader waits on.
  if (deliver != nullptr && deliver_ == nullptr) deliver_ = std::move(deliver);
  WakeLocked();
}

void Reply::End(const absl::Status& how) {
  std::function<void(const absl::Status&)> on_end;
  std::vector<std::shared_ptr<Generation>> generations;  // go without the lock
  {
    absl::MutexLock lock(&mutex_);
    on_end = std::exchange(on_end_, nullptr);
    generations.swap(generations_);
  }
  if (on_end != nullptr) on_end(how);
}

}  // namespace reprise::rollout::http
