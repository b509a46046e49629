#include "rollout/judge.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <thread>
#include <utility>

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/clock.h"
#include "base/fd.h"
#include "http/fetch.h"
#include "rollout/reward.h"
#include "rollout/text.h"

namespace reprise::rollout {
namespace {

namespace asio = boost::asio;

constexpr int64_t kFirstPauseMs = 200, kLongestPauseMs = 10'000;
constexpr uint64_t kTokenBytesMax = 16u << 10;

// Whether the same question may be answered when it is asked again.
bool MayPass(const absl::StatusOr<http::FetchAnswer>& answer) {
  if (!answer.ok()) {
    return absl::IsUnavailable(answer.status()) || absl::IsDeadlineExceeded(answer.status());
  }
  return answer->status >= 500 || answer->status == 408 || answer->status == 425 ||
         answer->status == 429;
}

absl::StatusOr<http::FetchRequest> RequestOf(const Judge::Question& question) {
  http::FetchRequest request;
  auto url = http::ParseUrl(question.judge.url);
  if (!url.ok()) return url.status();
  request.url = *std::move(url);
  request.headers = {{"Content-Type", "application/json"},
                     {"Accept", "application/json"},
                     {"Idempotency-Key", question.id}};
  if (!question.judge.token_file.empty()) {
    auto token = base::ReadFile(question.judge.token_file, kTokenBytesMax);
    if (!token.ok()) return token.status();
    request.headers.push_back({"Authorization", fmt::format("Bearer {}", Strip(*token))});
  }
  request.body = question.body;
  request.timeout = absl::Milliseconds(question.judge.timeout_ms);
  request.answer_bytes_max = kMaxJudgementBytes;
  request.ca_file = question.judge.ca_file;
  return request;
}

asio::awaitable<journal::RewardDone> Settle(const Judge::Question& question) {
  int64_t pause_ms = kFirstPauseMs;
  for (int64_t attempt = 1;; ++attempt) {
    auto request = RequestOf(question);
    if (!request.ok()) co_return NoReward(Message(request.status()));
    absl::StatusOr<http::FetchAnswer> answer = co_await http::Fetch(*request);
    if (!MayPass(answer) || attempt == question.judge.attempts) {
      journal::RewardDone done = answer.ok() ? ReadJudgement(answer->status, answer->body)
                                             : NoReward(Message(answer.status()));
      if (!done.has_value() && attempt > 1)
        done.set_failure(fmt::format("{} (attempt {})", done.failure(), attempt));
      co_return done;
    }
    asio::steady_timer timer(co_await asio::this_coro::executor);
    timer.expires_after(std::chrono::milliseconds(pause_ms));
    boost::system::error_code ec;
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ec));
    if (ec) co_return NoReward("the question was dropped");
    pause_ms = std::min(pause_ms * 2, kLongestPauseMs);
  }
}

}  // namespace

// Everything below runs on the one thread of the context.
class Judge::Impl {
 public:
  Impl() : work_(asio::make_work_guard(context_)), thread_([this] { context_.run(); }) {}
  ~Impl() {
    context_.stop();
    thread_.join();
  }

  struct Asked {
    Question question;
    std::function<void(journal::RewardDone)> answer;
    asio::cancellation_signal drop;
    journal::RewardDone done = NoReward("the question was dropped");
  };
  using AskedPtr = std::shared_ptr<Asked>;

  void Post(std::function<void()> event) { asio::post(context_, std::move(event)); }
  void Ask(AskedPtr asked) {
    waiting_.push_back(std::move(asked));
    Begin();
  }
  void Drop(const std::string& id) {
    if (auto found = running_.find(id); found != running_.end()) {
      found->second->drop.emit(asio::cancellation_type::terminal);
      return;
    }
    auto found = std::find_if(waiting_.begin(), waiting_.end(),
                              [&](const AskedPtr& asked) { return asked->question.id == id; });
    if (found == waiting_.end()) return;
    AskedPtr asked = std::move(*found);
    waiting_.erase(found);
    asked->answer(NoReward("the question was dropped"));
  }

 private:
  void Begin() {
    while (!waiting_.empty() && running_.size() < kQuestionsAtOnce) {
      AskedPtr asked = std::move(waiting_.front());
      waiting_.pop_front();
      running_[asked->question.id] = asked;
      asio::co_spawn(
          context_, Run(asked),
          asio::bind_cancellation_slot(asked->drop.slot(), [this, asked](std::exception_ptr) {
            // An exception is the cancellation that came between two operations.
            running_.erase(asked->question.id);
            Begin();
            asked->answer(asked->done);
          }));
    }
  }
  asio::awaitable<void> Run(AskedPtr asked) {
    base::Stopwatch stopwatch;
    asked->done = co_await Settle(asked->question);
    asked->done.set_duration_us(stopwatch.ElapsedMicros());
  }

  asio::io_context context_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::map<std::string, AskedPtr> running_;  // by id
  std::deque<AskedPtr> waiting_;
  std::thread thread_;
};

Judge::Judge() : impl_(std::make_unique<Impl>()) {}
Judge::~Judge() = default;

void Judge::Ask(Question question, std::function<void(journal::RewardDone)> answer) {
  auto asked = std::make_shared<Impl::Asked>();
  asked->question = std::move(question);
  asked->answer = std::move(answer);
  impl_->Post([impl = impl_.get(), asked] { impl->Ask(asked); });
}

void Judge::Drop(const std::string& id) {
  impl_->Post([impl = impl_.get(), id] { impl->Drop(id); });
}

}  // namespace reprise::rollout
