#include "sandboxd/api/http/surface.h"

#include <atomic>
#include <utility>

#include <fmt/format.h>

#include "absl/synchronization/notification.h"
#include "replay/sha256.h"

namespace reprise::sandboxd::http {
namespace {

constexpr size_t kIdPartBytesMax = 64;

// Pulls events in a loop instead of in a recursion, whether they are there already or come later.
class Collector : public std::enable_shared_from_this<Collector> {
 public:
  Collector(std::shared_ptr<CallStream> stream, size_t bytes_max,
            std::function<void(absl::StatusOr<Collected>)> done)
      : stream_(std::move(stream)), bytes_max_(bytes_max), done_(std::move(done)) {}

  void Pull() {
    do {
      step_ = kAsked;
      stream_->Next([self = shared_from_this()](CallStream::Event event) {
        self->event_ = std::move(event);
        if (self->step_.exchange(kDelivered) == kLeft && self->Take()) self->Pull();
      });
      if (step_.exchange(kLeft) == kAsked) return;  // its delivery goes on with this
    } while (Take());
  }

 private:
  enum Step { kAsked, kDelivered, kLeft };

  void Append(std::string* to, const std::string& data) {
    const size_t room = bytes_max_ - std::min(bytes_max_, to->size());
    if (data.size() > room) collected_.cut = true;
    to->append(data, 0, room);
  }

  // False when that was the end.
  bool Take() {
    if (!event_.ok()) {
      done_(event_.status());
      return false;
    }
    if (!event_->has_value()) {
      done_(std::move(collected_));
      return false;
    }
    sandbox::ExecuteEvent& event = **event_;
    if (event.has_started()) {
      collected_.started = std::move(*event.mutable_started());
    } else if (event.has_result()) {
      collected_.result = std::move(*event.mutable_result());
      collected_.cut = collected_.cut || collected_.result.truncated();
    } else {
      Append(event.output().stream() == sandbox::STREAM_STDOUT ? &collected_.out : &collected_.err,
             event.output().data());
    }
    return true;
  }

  const std::shared_ptr<CallStream> stream_;
  const size_t bytes_max_;
  const std::function<void(absl::StatusOr<Collected>)> done_;
  std::atomic<Step> step_{kAsked};
  CallStream::Event event_ = std::nullopt;
  Collected collected_;
};

}  // namespace

absl::Status Busy() {
  return absl::UnavailableError("too many requests wait, or sandboxd is stopping: try again");
}

void PostVerb(const Surface& surface, const ErrorForm& form, const Respond& respond,
              std::function<void()> work) {
  if (!surface.verbs->TryPost(std::move(work))) respond(form(Busy()));
}

Handler OnVerbThread(const Surface& surface, ErrorForm form,
                     std::function<Response(const Request&)> work) {
  return [surface, form = std::move(form), work = std::move(work)](RequestPtr request,
                                                                   Respond respond) {
    PostVerb(surface, form, respond, [work, request, respond] { respond(work(*request)); });
  };
}

void Collect(std::shared_ptr<CallStream> stream, size_t bytes_max,
             std::function<void(absl::StatusOr<Collected>)> done) {
  std::make_shared<Collector>(std::move(stream), bytes_max, std::move(done))->Pull();
}

absl::StatusOr<Collected> CollectNow(std::shared_ptr<CallStream> stream, size_t bytes_max) {
  absl::Notification ended;
  absl::StatusOr<Collected> collected = absl::UnknownError("");
  Collect(std::move(stream), bytes_max, [&](absl::StatusOr<Collected> all) {
    collected = std::move(all);
    ended.Notify();
  });
  ended.WaitForNotification();
  return collected;
}

std::string_view RetryKey(const Request& request) {
  const std::string_view key = request.header("idempotency-key");
  return key.empty() ? request.header("x-request-id") : key;
}

std::string IdPart(std::string_view text) {
  std::string part;
  bool same = !text.empty() && text.size() <= kIdPartBytesMax && text != "." && text != "..";
  for (const char c : text.substr(0, kIdPartBytesMax)) {
    const bool allowed = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                         (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
    same = same && allowed;
    part += allowed ? c : '-';
  }
  if (same) return part;
  return fmt::format("{}-{}", part, replay::Hex(replay::Sha256Of(text)).substr(0, 16));
}

}  // namespace reprise::sandboxd::http
