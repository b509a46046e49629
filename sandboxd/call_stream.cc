#include "sandboxd/call_stream.h"

#include <utility>

#include <fmt/format.h>

namespace reprise::sandboxd {
namespace {

// Cuts off what lies before `cursor`; false when nothing is left.
bool Trim(sandbox::Output* output, uint64_t cursor) {
  uint64_t end = output->offset() + output->data().size();
  if (end <= cursor) return false;
  if (output->offset() < cursor) {
    output->mutable_data()->erase(0, cursor - output->offset());
    output->set_offset(cursor);
  }
  return true;
}

}  // namespace

void CallStream::Next(std::function<void(Event)> deliver) {
  {
    absl::MutexLock lock(&mutex_);
    waiting_ = std::move(deliver);
  }
  Pump();
}

void CallStream::Begin(std::string_view call_id, bool replayed, bool attached) {
  {
    absl::MutexLock lock(&mutex_);
    call_id_ = std::string(call_id);
    sandbox::Started started;
    started.set_call_id(call_id_);
    started.set_replayed(replayed);
    started.set_attached(attached);
    started_ = std::move(started);
    behind_ = replayed || attached;
  }
  Pump();
}

void CallStream::Push(sandbox::Stream stream, uint64_t offset, std::string_view data) {
  {
    absl::MutexLock lock(&mutex_);
    if (!error_.ok() || behind_) return;  // behind: the next pass over the journal finds it there
    if (live_bytes_ + data.size() > kLiveBytesMax) {
      live_.clear();
      live_bytes_ = 0;
      behind_ = true;
    } else {
      sandbox::Output output;
      output.set_stream(stream);
      output.set_offset(offset);
      output.set_data(data.data(), data.size());
      live_bytes_ += data.size();
      live_.push_back(std::move(output));
    }
  }
  Pump();
}

void CallStream::Finish(const sandbox::Result& result) {
  {
    absl::MutexLock lock(&mutex_);
    if (!result_.has_value()) result_ = result;
  }
  Pump();
}

void CallStream::Fail(absl::Status status) {
  {
    absl::MutexLock lock(&mutex_);
    if (!error_.ok() || done_) return;
    error_ = std::move(status);
    page_.clear();
    live_.clear();
    live_bytes_ = 0;
  }
  Pump();
}

bool CallStream::failed() const {
  absl::MutexLock lock(&mutex_);
  return !error_.ok();
}

void CallStream::Pump() {
  std::function<void(Event)> deliver;
  std::optional<Event> event;
  bool read = false;
  {
    absl::MutexLock lock(&mutex_);
    if (waiting_ == nullptr) return;
    event = TakeEvent();
    if (event.has_value()) {
      deliver = std::move(waiting_);
      waiting_ = nullptr;
    } else if (behind_ && !reading_ && !call_id_.empty() && !done_) {
      behind_ = false;
      reading_ = read = true;
      live_.clear();  // all of it is in the journal
      live_bytes_ = 0;
    }
  }
  if (deliver != nullptr) deliver(std::move(*event));
  if (read && !pool_->TryPost([self = shared_from_this()] { self->ReadPage(); })) {
    Fail(absl::UnavailableError(
        "too many readers wait for the journal, or sandboxd is stopping: try again"));
  }
}

std::optional<CallStream::Event> CallStream::TakeEvent() {
  if (!error_.ok()) return Event(error_);
  if (call_id_.empty()) return std::nullopt;  // Begin comes first
  if (done_) return Event(std::nullopt);
  if (started_.has_value()) {
    sandbox::ExecuteEvent event;
    *event.mutable_started() = *std::move(started_);
    started_.reset();
    return Event(std::move(event));
  }
  if (auto event = TakeOutput(&page_); event.has_value()) return Event(*std::move(event));
  if (reading_ || behind_) return std::nullopt;
  if (auto event = TakeOutput(&live_); event.has_value()) return Event(*std::move(event));
  live_bytes_ = 0;
  if (!result_.has_value()) return std::nullopt;
  sandbox::ExecuteEvent event;
  *event.mutable_result() = *std::move(result_);
  done_ = true;
  return Event(std::move(event));
}

std::optional<sandbox::ExecuteEvent> CallStream::TakeOutput(std::deque<sandbox::Output>* from) {
  while (!from->empty()) {
    sandbox::ExecuteEvent event;
    *event.mutable_output() = std::move(from->front());
    from->pop_front();
    sandbox::Output* output = event.mutable_output();
    if (from == &live_) live_bytes_ -= output->data().size();
    uint64_t& cursor = cursor_[output->stream()];
    if (!Trim(output, cursor)) continue;
    cursor = output->offset() + output->data().size();
    return event;
  }
  return std::nullopt;
}

void CallStream::ReadPage() {
  std::string call_id;
  uint64_t cursor[3];
  {
    absl::MutexLock lock(&mutex_);
    call_id = call_id_;
    for (int i = 0; i < 3; ++i) cursor[i] = cursor_[i];
  }
  std::deque<sandbox::Output> page;
  size_t bytes = 0;
  bool more = false;
  absl::Status status =
      log_->ReadOutput(call_id, [&](const replay::journal::CallOutput& chunk) -> absl::Status {
        if (chunk.offset() + chunk.data().size() <= cursor[chunk.stream()]) return absl::OkStatus();
        if (bytes >= kPageBytes) {
          more = true;
          return absl::CancelledError("page is full");
        }
        sandbox::Output output;
        output.set_stream(chunk.stream());
        output.set_offset(chunk.offset());
        output.set_data(chunk.data());
        bytes += chunk.data().size();
        page.push_back(std::move(output));
        return absl::OkStatus();
      });
  if (!status.ok() && !more) {
    Fail(std::move(status));
  }
  {
    absl::MutexLock lock(&mutex_);
    reading_ = false;
    if (error_.ok()) {
      page_ = std::move(page);
      behind_ = behind_ || more;
    }
  }
  Pump();
}

}  // namespace reprise::sandboxd
