// The watches of envd's filesystem service: a stream of events, or a watcher that is asked for
// them.
#include <sys/stat.h>

#include <map>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "reprise/envd/v1/filesystem.pb.h"
#include "sandboxd/api/http/box_files.h"
#include "sandboxd/api/http/e2b.h"
#include "sandboxd/api/http/process_stream.h"

namespace reprise::sandboxd::http {
namespace {

namespace envd = ::reprise::envd::v1;

constexpr size_t kBodyMax = 1u << 20;
// A watcher whose watch has ended is forgotten when nobody asks for it any more.
constexpr absl::Duration kForgottenAfter = absl::Minutes(10);

// UNSPECIFIED for what the protocol has no event for.
envd::EventType TypeOf(sandbox::WatchEventKind kind) {
  switch (kind) {
    case sandbox::WATCH_EVENT_KIND_CREATED:
      return envd::EVENT_TYPE_CREATE;
    case sandbox::WATCH_EVENT_KIND_WRITTEN:
      return envd::EVENT_TYPE_WRITE;
    case sandbox::WATCH_EVENT_KIND_REMOVED:
      return envd::EVENT_TYPE_REMOVE;
    case sandbox::WATCH_EVENT_KIND_RENAMED:
      return envd::EVENT_TYPE_RENAME;
    case sandbox::WATCH_EVENT_KIND_CHMOD:
      return envd::EVENT_TYPE_CHMOD;
    default:
      return envd::EVENT_TYPE_UNSPECIFIED;
  }
}

absl::Status Dropped() {
  return absl::ResourceExhaustedError(
      "events were dropped: more happened than was taken; list the directory anew");
}

class WatchSource final : public BodySource, public std::enable_shared_from_this<WatchSource> {
 public:
  WatchSource(WatchManager* watches, std::shared_ptr<WatchStream> stream, const Codec& codec,
              absl::Duration keepalive)
      : watches_(watches), stream_(std::move(stream)), codec_(codec), keepalive_(keepalive) {}
  ~WatchSource() override { watches_->Close(stream_); }

  void Next(std::function<void(Piece)> deliver) override {
    if (ended_) return deliver(std::optional<std::string>());
    stream_->Next([self = shared_from_this(), deliver = std::move(deliver)](
                      WatchStream::Event event) { deliver(self->FrameOf(event)); });
  }
  void Cancel() override { watches_->Close(stream_); }
  std::string KeepAlive() override {
    envd::WatchDirResponse response;
    response.mutable_keepalive();
    return Envelope(0, Encode(codec_, response));
  }
  absl::Duration keepalive_every() const override { return keepalive_; }

 private:
  Piece FrameOf(const WatchStream::Event& event) {
    envd::WatchDirResponse response;
    const absl::Status end = !event.ok() ? event.status()
                             : event->kind() == sandbox::WATCH_EVENT_KIND_OVERFLOW
                                 ? Dropped()
                                 : absl::OkStatus();
    if (!end.ok()) {
      ended_ = true;
      return std::optional<std::string>(EndFrame(end));
    }
    if (event->kind() == sandbox::WATCH_EVENT_KIND_STARTED) {
      response.mutable_start();
    } else {
      response.mutable_filesystem()->set_name(event->path());
      response.mutable_filesystem()->set_type(TypeOf(event->kind()));
    }
    return std::optional<std::string>(Envelope(0, Encode(codec_, response)));
  }

  WatchManager* const watches_;
  const std::shared_ptr<WatchStream> stream_;
  const Codec codec_;
  const absl::Duration keepalive_;
  bool ended_ = false;
};

class Watches {
 public:
  explicit Watches(Surface surface) : surface_(surface) {}

  void WatchDir(const RequestPtr& request, const Respond& respond) {
    const absl::StatusOr<Codec> codec = CodecOf(request->header("content-type"));
    if (!codec.ok() || !codec->streaming) return respond(NoStream());
    const std::string id = SandboxIdOf(*request);
    if (std::optional<Response> gone = CheckUsable(surface_, id); gone.has_value())
      return respond(*std::move(gone));
    absl::StatusOr<std::shared_ptr<WatchStream>> stream = OpenStream(*codec, id, request->body);
    if (!stream.ok()) return respond(StreamError(*codec, stream.status()));
    Response response;
    response.content_type = codec->content_type();
    response.stream = std::make_shared<WatchSource>(surface_.watches, *std::move(stream), *codec,
                                                    KeepAliveOf(*request));
    respond(std::move(response));
  }

  absl::Status CreateWatcher(const std::string& id, const envd::CreateWatcherRequest& request,
                             envd::CreateWatcherResponse* response) {
    ASSIGN_OR_RETURN(std::shared_ptr<WatchStream> stream,
                     Open(id, request.path(), request.recursive()));
    response->set_watcher_id(fmt::format("watcher-{}", base::RandomHex(8)));
    absl::MutexLock lock(&mutex_);
    const absl::Time now = absl::Now();
    for (auto watcher = watchers_.begin(); watcher != watchers_.end();) {
      const bool forgotten =
          watcher->second.stream->ended() && now - watcher->second.asked > kForgottenAfter;
      watcher = forgotten ? watchers_.erase(watcher) : std::next(watcher);
    }
    watchers_[response->watcher_id()] = {std::move(stream), now};
    return absl::OkStatus();
  }

  absl::Status GetWatcherEvents(const std::string& id, const envd::GetWatcherEventsRequest& request,
                                envd::GetWatcherEventsResponse* response) {
    ASSIGN_OR_RETURN(const std::shared_ptr<WatchStream> stream, Find(id, request.watcher_id()));
    ASSIGN_OR_RETURN(const std::vector<sandbox::WatchEvent> events, stream->TakeAll());
    for (const sandbox::WatchEvent& event : events) {
      if (event.kind() == sandbox::WATCH_EVENT_KIND_OVERFLOW) return Dropped();
      if (event.kind() == sandbox::WATCH_EVENT_KIND_STARTED) continue;
      envd::FilesystemEvent* out = response->add_events();
      out->set_name(event.path());
      out->set_type(TypeOf(event.kind()));
    }
    return absl::OkStatus();
  }

  absl::Status RemoveWatcher(const std::string& id, const envd::RemoveWatcherRequest& request,
                             envd::RemoveWatcherResponse*) {
    ASSIGN_OR_RETURN(const std::shared_ptr<WatchStream> stream, Find(id, request.watcher_id()));
    surface_.watches->Close(stream);
    absl::MutexLock lock(&mutex_);
    watchers_.erase(request.watcher_id());
    return absl::OkStatus();
  }

 private:
  struct Watcher {
    std::shared_ptr<WatchStream> stream;
    absl::Time asked;
  };

  absl::StatusOr<std::shared_ptr<WatchStream>> OpenStream(const Codec& codec, const std::string& id,
                                                          std::string_view body) {
    envd::WatchDirRequest request;
    ASSIGN_OR_RETURN(const std::string_view text, OnlyEnvelope(body));
    RETURN_IF_ERROR(Decode(codec, text, &request));
    return Open(id, request.path(), request.recursive());
  }

  absl::StatusOr<std::shared_ptr<WatchStream>> Open(const std::string& id, const std::string& path,
                                                    bool recursive) {
    ASSIGN_OR_RETURN(const BoxFiles files, BoxFiles::Open(surface_.sandboxes, id));
    ASSIGN_OR_RETURN(const std::string clean, files.Path(path));
    if (clean != "/") {
      ASSIGN_OR_RETURN(const sandbox::FileInfo info, files.Stat(clean));
      if (!S_ISDIR(info.mode()) && !S_ISLNK(info.mode()))
        return absl::InvalidArgumentError(fmt::format("path is not a directory: {}", clean));
    }
    return surface_.watches->Open(id, clean, recursive);
  }

  absl::StatusOr<std::shared_ptr<WatchStream>> Find(const std::string& id,
                                                    const std::string& watcher_id) {
    absl::MutexLock lock(&mutex_);
    const auto found = watchers_.find(watcher_id);
    if (found == watchers_.end() || found->second.stream->sandbox_id() != id)
      return absl::NotFoundError(fmt::format("watcher {} does not exist", watcher_id));
    found->second.asked = absl::Now();
    return found->second.stream;
  }

  const Surface surface_;
  absl::Mutex mutex_;
  std::map<std::string, Watcher> watchers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

void AddWatchRoutes(const Surface& surface, Router* router) {
  auto watches = std::make_shared<Watches>(surface);
  auto add = [&](const char* verb, Handler handler) {
    Route route;
    route.method = "POST";
    route.pattern = fmt::format("/filesystem.Filesystem/{}", verb);
    route.guard = EnvdGuard(surface);
    route.body_max = kBodyMax;
    route.handler = std::move(handler);
    router->Add(std::move(route));
  };
  add("WatchDir", [surface, watches](RequestPtr request, Respond respond) {
    PostVerb(surface, &ConnectError, respond, [=] { watches->WatchDir(request, respond); });
  });
  add("CreateWatcher", UnaryVerb<envd::CreateWatcherRequest, envd::CreateWatcherResponse>(
                           surface, watches, &Watches::CreateWatcher));
  add("GetWatcherEvents", UnaryVerb<envd::GetWatcherEventsRequest, envd::GetWatcherEventsResponse>(
                              surface, watches, &Watches::GetWatcherEvents));
  add("RemoveWatcher", UnaryVerb<envd::RemoveWatcherRequest, envd::RemoveWatcherResponse>(
                           surface, watches, &Watches::RemoveWatcher));
}

}  // namespace reprise::sandboxd::http
