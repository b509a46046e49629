#include "sandboxd/api/streams.h"

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sandboxd/api/grpc_status.h"

namespace reprise::sandboxd {
namespace {

constexpr size_t kFileChunkBytes = 64u << 10;

absl::Status Gone() { return absl::CancelledError("the client went away"); }

// Pulls one event at a time: the next is asked for when gRPC has taken the last.
class CallReactor final : public grpc::ServerWriteReactor<sandbox::ExecuteEvent> {
 public:
  explicit CallReactor(std::shared_ptr<CallStream> stream) : stream_(std::move(stream)) { Pull(); }

  void OnWriteDone(bool ok) override {
    if (ok) {
      Pull();
    } else {
      stream_->Fail(Gone());
      Finish(ToGrpc(Gone()));
    }
  }
  void OnCancel() override { stream_->Fail(Gone()); }
  void OnDone() override { delete this; }

 private:
  void Pull() {
    stream_->Next([this](CallStream::Event event) {
      if (!event.ok()) {
        Finish(ToGrpc(event.status()));
      } else if (!event->has_value()) {
        Finish(grpc::Status::OK);
      } else {
        event_ = **std::move(event);
        StartWrite(&event_);
      }
    });
  }

  const std::shared_ptr<CallStream> stream_;
  sandbox::ExecuteEvent event_;
};

class RefuseReactor final : public grpc::ServerWriteReactor<sandbox::ExecuteEvent> {
 public:
  explicit RefuseReactor(const absl::Status& status) { Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

class WatchReactor final : public grpc::ServerWriteReactor<sandbox::WatchEvent> {
 public:
  WatchReactor(WorkerPool* verbs, WatchManager* watches, OpenWatch open) : watches_(watches) {
    if (!verbs->TryPost([this, open = std::move(open)] { Begin(open()); }))
      Finish(ToGrpc(absl::UnavailableError("no thread is free: try again")));
  }

  void OnWriteDone(bool ok) override {
    if (ok) {
      Pull();
    } else {
      Finish(ToGrpc(Gone()));
    }
  }
  void OnCancel() override {
    std::shared_ptr<WatchStream> stream;
    {
      absl::MutexLock lock(&mutex_);
      gone_ = true;
      stream = stream_;
    }
    if (stream != nullptr) watches_->Close(stream);
  }
  void OnDone() override {
    if (stream_ != nullptr) watches_->Close(stream_);
    delete this;
  }

 private:
  void Begin(absl::StatusOr<std::shared_ptr<WatchStream>> opened) {
    if (!opened.ok()) return Finish(ToGrpc(opened.status()));
    bool gone = false;
    {
      absl::MutexLock lock(&mutex_);
      stream_ = *std::move(opened);
      gone = gone_;
    }
    if (gone) return Finish(ToGrpc(Gone()));
    Pull();
  }
  void Pull() {
    stream_->Next([this](WatchStream::Event event) {
      if (!event.ok()) return Finish(ToGrpc(event.status()));
      event_ = *std::move(event);
      StartWrite(&event_);
    });
  }

  WatchManager* const watches_;
  absl::Mutex mutex_;
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<WatchStream> stream_;  // set once, under the lock
  sandbox::WatchEvent event_;
};

class FileOutReactor final : public grpc::ServerWriteReactor<sandbox::FileChunk> {
 public:
  FileOutReactor(WorkerPool* verbs, ReadBody read) {
    auto work = [this, read = std::move(read)] {
      Finish(ToGrpc(read([this](std::string_view data) { return Send(data); })));
    };
    if (!verbs->TryPost(std::move(work)))
      Finish(ToGrpc(absl::UnavailableError("no thread is free: try again")));
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    gone_ = gone_ || !ok;
  }
  void OnCancel() override {
    absl::MutexLock lock(&mutex_);
    gone_ = true;
  }
  void OnDone() override { delete this; }

 private:
  absl::Status Send(std::string_view data) {
    for (size_t at = 0; at < data.size(); at += kFileChunkBytes) {
      {
        absl::MutexLock lock(&mutex_);
        if (gone_) return Gone();
        writing_ = true;
      }
      std::string_view piece = data.substr(at, kFileChunkBytes);
      chunk_.set_data(piece.data(), piece.size());
      StartWrite(&chunk_);
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &FileOutReactor::Written));
      if (gone_) return Gone();
    }
    return absl::OkStatus();
  }
  bool Written() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return !writing_; }

  absl::Mutex mutex_;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;
  sandbox::FileChunk chunk_;
};

class FileInReactor final : public grpc::ServerReadReactor<sandbox::WriteFileRequest> {
 public:
  FileInReactor(WorkerPool* verbs, sandbox::WriteFileResponse* response,
                const absl::Status& refused, WriteBody write)
      : response_(response) {
    if (!refused.ok()) {
      Finish(ToGrpc(refused));
      return;
    }
    if (!verbs->TryPost([this, write = std::move(write)] { Run(write); })) {
      Finish(ToGrpc(absl::UnavailableError("no thread is free: try again")));
    }
  }

  void OnReadDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    reading_ = false;
    ended_ = !ok;
  }
  void OnCancel() override {
    absl::MutexLock lock(&mutex_);
    gone_ = true;
  }
  void OnDone() override { delete this; }

 private:
  void Run(const WriteBody& write) {
    if (!ReadNext()) {
      Finish(ToGrpc(absl::InvalidArgumentError("the stream ended before its first message")));
      return;
    }
    sandbox::WriteFileRequest first = message_;
    std::string held = std::move(*first.mutable_data());
    first.clear_data();
    bool taken = false;
    absl::Status status = write(first, [&]() -> absl::StatusOr<std::string> {
      std::string data;
      if (!std::exchange(taken, true)) data = std::move(held);
      while (data.empty()) {  // an empty message is no end
        if (!ReadNext()) break;
        data = std::move(*message_.mutable_data());
      }
      {
        absl::MutexLock lock(&mutex_);
        if (gone_) return Gone();
      }
      bytes_ += data.size();
      return data;
    });
    response_->set_bytes(bytes_);
    Finish(ToGrpc(status));
  }

  // False at the end of the stream.
  bool ReadNext() {
    {
      absl::MutexLock lock(&mutex_);
      if (ended_ || gone_) return false;
      reading_ = true;
    }
    message_.Clear();
    StartRead(&message_);
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &FileInReactor::HasRead));
    return !ended_;
  }
  bool HasRead() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return !reading_; }

  sandbox::WriteFileResponse* const response_;
  absl::Mutex mutex_;
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;
  sandbox::WriteFileRequest message_;
  uint64_t bytes_ = 0;
};

}  // namespace

grpc::ServerWriteReactor<sandbox::ExecuteEvent>* StreamCall(std::shared_ptr<CallStream> stream) {
  return new CallReactor(std::move(stream));
}
grpc::ServerWriteReactor<sandbox::ExecuteEvent>* RefuseStream(const absl::Status& status) {
  return new RefuseReactor(status);
}
grpc::ServerWriteReactor<sandbox::WatchEvent>* StreamWatch(WorkerPool* verbs, WatchManager* watches,
                                                           OpenWatch open) {
  return new WatchReactor(verbs, watches, std::move(open));
}
grpc::ServerWriteReactor<sandbox::FileChunk>* StreamFileOut(WorkerPool* verbs, ReadBody read) {
  return new FileOutReactor(verbs, std::move(read));
}
grpc::ServerReadReactor<sandbox::WriteFileRequest>* StreamFileIn(
    WorkerPool* verbs, sandbox::WriteFileResponse* response, const absl::Status& refused,
    WriteBody write) {
  return new FileInReactor(verbs, response, refused, std::move(write));
}

}  // namespace reprise::sandboxd
