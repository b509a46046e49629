#include "sandboxd/api/http/file_source.h"

#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace reprise::sandboxd::http {
namespace {

class FileSource final : public BodySource {
 public:
  // From the reading thread: waits until the last piece was taken.
  absl::Status Put(Piece piece) {
    std::function<void(Piece)> deliver;
    {
      absl::MutexLock lock(&mutex_);
      auto room = [this]()
                      ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return gone_ || deliver_ != nullptr; };
      mutex_.Await(absl::Condition(&room));
      if (gone_) return absl::CancelledError("the client went away");
      deliver = std::exchange(deliver_, nullptr);
    }
    deliver(std::move(piece));
    return absl::OkStatus();
  }

  void Next(std::function<void(Piece)> deliver) override {
    absl::MutexLock lock(&mutex_);
    deliver_ = std::move(deliver);
  }
  void Cancel() override {
    std::function<void(Piece)> deliver;
    {
      absl::MutexLock lock(&mutex_);
      gone_ = true;
      deliver = std::exchange(deliver_, nullptr);
    }
    if (deliver != nullptr) deliver(absl::CancelledError("the client went away"));
  }

 private:
  absl::Mutex mutex_;
  std::function<void(Piece)> deliver_ ABSL_GUARDED_BY(mutex_);
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

void SendFile(
    const Respond& respond, Response response,
    const std::function<Response(const absl::Status&)>& form,
    const std::function<absl::Status(const std::function<absl::Status(std::string_view)>&)>& read) {
  std::shared_ptr<FileSource> source;
  response.content_type = "application/octet-stream";
  const absl::Status status = read([&](std::string_view data) -> absl::Status {
    if (data.empty()) return absl::OkStatus();
    if (source == nullptr) {
      source = std::make_shared<FileSource>();
      Response begun = response;
      begun.stream = source;
      respond(std::move(begun));
    }
    return source->Put(std::optional<std::string>(data));
  });
  if (source == nullptr) return respond(status.ok() ? response : form(status));
  if (status.ok()) {
    source->Put(std::optional<std::string>()).IgnoreError();
  } else {
    source->Put(status).IgnoreError();
  }
}

}  // namespace reprise::sandboxd::http
