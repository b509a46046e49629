#include "sandboxd/api/service.h"

#include <algorithm>
#include <functional>
#include <map>
#include <utility>

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include "base/ids.h"
#include "base/status_macros.h"
#include "reprise/sandbox/v1/sandbox.grpc.pb.h"
#include "sandboxd/api/grpc_status.h"
#include "sandboxd/api/streams.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd {
namespace {

using Context = grpc::CallbackServerContext;
using UnaryReactor = grpc::ServerUnaryReactor;

absl::Status CheckPath(std::string_view field, const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError(fmt::format("{} is empty", field));
  if (path.size() > kPathBytesMax || path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(
        fmt::format("{} is longer than {} bytes or has a NUL", field, kPathBytesMax));
  }
  return absl::OkStatus();
}

class SandboxServiceImpl final : public sandbox::SandboxService::CallbackService {
 public:
  SandboxServiceImpl(const Authorizer* authorizer, WorkerPool* verbs, CallManager* calls,
                     SandboxManager* sandboxes, WatchManager* watches)
      : authorizer_(authorizer),
        verbs_(verbs),
        calls_(calls),
        sandboxes_(sandboxes),
        watches_(watches) {}

  // ---- sandboxes
  UnaryReactor* Create(Context* context, const sandbox::CreateRequest* request,
                       sandbox::CreateResponse* response) override {
    return Answer(context, response, [=, this] { return sandboxes_->Create(*request); });
  }
  UnaryReactor* Get(Context* context, const sandbox::GetRequest* request,
                    sandbox::Sandbox* response) override {
    return Answer(context, response, [=, this] { return sandboxes_->Get(request->sandbox_id()); });
  }
  UnaryReactor* List(Context* context, const sandbox::ListRequest*,
                     sandbox::ListResponse* response) override {
    return Answer(context, response, [=, this] { return sandboxes_->List(); });
  }
  UnaryReactor* Stop(Context* context, const sandbox::StopRequest* request,
                     sandbox::StopResponse* response) override {
    return Do(context, [=, this]() -> absl::Status {
      ASSIGN_OR_RETURN(bool was_running, calls_->Stop(request->sandbox_id()));
      response->set_was_running(was_running);
      return absl::OkStatus();
    });
  }
  UnaryReactor* Forget(Context* context, const sandbox::ForgetRequest* request,
                       sandbox::ForgetResponse*) override {
    return Do(context, [=, this] { return calls_->ForgetSandbox(request->sandbox_id()); });
  }
  UnaryReactor* Pause(Context* context, const sandbox::PauseRequest* request,
                      sandbox::PauseResponse*) override {
    return Do(context, [=, this] { return sandboxes_->Pause(request->sandbox_id()); });
  }
  UnaryReactor* Resume(Context* context, const sandbox::ResumeRequest* request,
                       sandbox::ResumeResponse*) override {
    return Do(context, [=, this] { return sandboxes_->Resume(request->sandbox_id()); });
  }

  UnaryReactor* SetNetwork(Context* context, const sandbox::SetNetworkRequest* request,
                           sandbox::SetNetworkResponse*) override {
    return Do(context, [=, this] { return sandboxes_->SetNetwork(*request); });
  }
  UnaryReactor* GetNetwork(Context* context, const sandbox::GetNetworkRequest* request,
                           sandbox::GetNetworkResponse* response) override {
    return Answer(context, response,
                  [=, this] { return sandboxes_->GetNetwork(request->sandbox_id()); });
  }

  UnaryReactor* Snapshot(Context* context, const sandbox::SnapshotRequest* request,
                         sandbox::SnapshotInfo* response) override {
    return Answer(context, response, [=, this]() -> absl::StatusOr<sandbox::SnapshotInfo> {
      if (!request->name().empty()) RETURN_IF_ERROR(CheckImageName(request->name()));
      return calls_->Snapshot(*request);
    });
  }
  UnaryReactor* ListSnapshots(Context* context, const sandbox::ListSnapshotsRequest* request,
                              sandbox::ListSnapshotsResponse* response) override {
    return Answer(context, response,
                  [=, this] { return sandboxes_->ListSnapshots(request->sandbox_id()); });
  }
  UnaryReactor* Fork(Context* context, const sandbox::ForkRequest* request,
                     sandbox::CreateResponse* response) override {
    return Answer(context, response, [=, this] { return calls_->Fork(*request); });
  }

  UnaryReactor* Restore(Context* context, const sandbox::RestoreRequest* request,
                        sandbox::RestoreResponse* response) override {
    return Answer(context, response, [=, this] { return calls_->Restore(request->sandbox_id()); });
  }

  // ---- calls
  grpc::ServerWriteReactor<sandbox::ExecuteEvent>* Execute(
      Context* context, const sandbox::ExecuteRequest* request) override {
    if (absl::Status status = authorizer_->Check(*context); !status.ok())
      return RefuseStream(status);
    return StreamCall(calls_->Execute(*request));
  }
  grpc::ServerWriteReactor<sandbox::ExecuteEvent>* Attach(
      Context* context, const sandbox::AttachRequest* request) override {
    if (absl::Status status = authorizer_->Check(*context); !status.ok())
      return RefuseStream(status);
    return StreamCall(calls_->Attach(request->call_id()));
  }
  UnaryReactor* WriteStdin(Context* context, const sandbox::WriteStdinRequest* request,
                           sandbox::WriteStdinResponse*) override {
    return Do(context, [=, this] { return calls_->WriteStdin(*request); });
  }
  UnaryReactor* Resize(Context* context, const sandbox::ResizeRequest* request,
                       sandbox::ResizeResponse*) override {
    return Do(context, [=, this] { return calls_->Resize(*request); });
  }
  UnaryReactor* Signal(Context* context, const sandbox::SignalRequest* request,
                       sandbox::SignalResponse*) override {
    return Do(context, [=, this] { return calls_->Signal(*request); });
  }
  UnaryReactor* ListCalls(Context* context, const sandbox::ListCallsRequest* request,
                          sandbox::ListCallsResponse* response) override {
    return Answer(context, response,
                  [=, this] { return calls_->ListCalls(request->sandbox_id()); });
  }

  // ---- files
  grpc::ServerWriteReactor<sandbox::FileChunk>* ReadFile(
      Context* context, const sandbox::ReadFileRequest* request) override {
    absl::Status allowed = authorizer_->Check(*context);
    return StreamFileOut(
        verbs_,
        [=, this](const std::function<absl::Status(std::string_view)>& chunk) -> absl::Status {
          RETURN_IF_ERROR(allowed);
          return WithFiles(request->sandbox_id(), {{"path", request->path()}},
                           [&](const SandboxManager::Lease& lease) {
                             return lease.substrate->ReadFile(lease.ref(), request->path(), chunk);
                           });
        });
  }
  grpc::ServerReadReactor<sandbox::WriteFileRequest>* WriteFile(
      Context* context, sandbox::WriteFileResponse* response) override {
    return StreamFileIn(verbs_, response, authorizer_->Check(*context),
                        [this](const sandbox::WriteFileRequest& first,
                               const std::function<absl::StatusOr<std::string>()>& next) {
                          return Change(first.sandbox_id(), {{"path", first.path()}},
                                           [&](const SandboxManager::Lease& lease) {
                                             uint32_t mode =
                                                 first.mode() == 0 ? 0644 : first.mode() & 07777;
                                             return lease.substrate->WriteFile(
                                                 lease.ref(), first.path(), mode, next);
                                           });
                        });
  }
  UnaryReactor* ListDir(Context* context, const sandbox::ListDirRequest* request,
                        sandbox::ListDirResponse* response) override {
    return Do(context, [=, this] {
      return WithFiles(request->sandbox_id(), {{"path", request->path()}},
                       [&](const SandboxManager::Lease& lease) -> absl::Status {
                         ASSIGN_OR_RETURN(std::vector<sandbox::FileInfo> entries,
                                          lease.substrate->ListDir(lease.ref(), request->path()));
                         std::sort(
                             entries.begin(), entries.end(),
                             [](const auto& a, const auto& b) { return a.name() < b.name(); });
                         response->mutable_entries()->Assign(entries.begin(), entries.end());
                         return absl::OkStatus();
                       });
    });
  }
  UnaryReactor* MakeDir(Context* context, const sandbox::MakeDirRequest* request,
                        sandbox::MakeDirResponse*) override {
    return Do(context, [=, this] {
      return Change(request->sandbox_id(), {{"path", request->path()}},
                       [&](const SandboxManager::Lease& lease) {
                         return lease.substrate->MakeDir(lease.ref(), request->path());
                       });
    });
  }
  UnaryReactor* Move(Context* context, const sandbox::MoveRequest* request,
                     sandbox::MoveResponse*) override {
    return Do(context, [=, this] {
      return Change(request->sandbox_id(), {{"from", request->from()}, {"to", request->to()}},
                       [&](const SandboxManager::Lease& lease) {
                         return lease.substrate->Move(lease.ref(), request->from(), request->to());
                       });
    });
  }
  UnaryReactor* Remove(Context* context, const sandbox::RemoveRequest* request,
                       sandbox::RemoveResponse*) override {
    return Do(context, [=, this] {
      return Change(request->sandbox_id(), {{"path", request->path()}},
                       [&](const SandboxManager::Lease& lease) {
                         return lease.substrate->Remove(lease.ref(), request->path());
                       });
    });
  }

  // ---- consoles and screens
  UnaryReactor* Console(Context* context, const sandbox::ConsoleRequest* request,
                        sandbox::ConsoleResponse* response) override {
    return Answer(context, response, [=, this]() -> absl::StatusOr<sandbox::ConsoleResponse> {
      ASSIGN_OR_RETURN(const SandboxManager::Lease lease, Look(request->sandbox_id()));
      return lease.substrate->Console(lease.ref(), *request);
    });
  }
  UnaryReactor* Screenshot(Context* context, const sandbox::ScreenshotRequest* request,
                           sandbox::ScreenshotResponse* response) override {
    return Answer(context, response, [=, this]() -> absl::StatusOr<sandbox::ScreenshotResponse> {
      ASSIGN_OR_RETURN(const SandboxManager::Lease lease, Look(request->sandbox_id()));
      return lease.substrate->Screenshot(lease.ref());
    });
  }
  UnaryReactor* SendInput(Context* context, const sandbox::SendInputRequest* request,
                          sandbox::SendInputResponse*) override {
    return Do(context, [=, this] {
      return WithFiles(request->sandbox_id(), {}, [&](const SandboxManager::Lease& lease) {
        return lease.substrate->SendInput(lease.ref(), *request);
      });
    });
  }

  // ---- changes of files
  grpc::ServerWriteReactor<sandbox::WatchEvent>* Watch(
      Context* context, const sandbox::WatchRequest* request) override {
    const absl::Status allowed = authorizer_->Check(*context);
    return StreamWatch(
        verbs_, watches_, [=, this]() -> absl::StatusOr<std::shared_ptr<WatchStream>> {
          RETURN_IF_ERROR(allowed);
          RETURN_IF_ERROR(base::CheckId(request->sandbox_id(), "sandbox_id", /*allow_slash=*/true));
          RETURN_IF_ERROR(CheckPath("path", request->path()));
          return watches_->Open(request->sandbox_id(), request->path(), request->recursive());
        });
  }

  // ---- tiers and images
  UnaryReactor* ListTiers(Context* context, const sandbox::ListTiersRequest*,
                          sandbox::ListTiersResponse* response) override {
    return Do(context, [=, this] {
      for (const auto& [tier, substrate] : sandboxes_->tiers())
        *response->add_tiers() = substrate->Describe();
      return absl::OkStatus();
    });
  }
  UnaryReactor* ImportImage(Context* context, const sandbox::ImportImageRequest* request,
                            sandbox::Image* response) override {
    return Answer(context, response, [=, this]() -> absl::StatusOr<sandbox::Image> {
      RETURN_IF_ERROR(CheckImageName(request->name()));
      if (request->name().starts_with(kSnapshotImagePrefix)) {
        return absl::InvalidArgumentError(
            fmt::format("name begins with {}, which is kept for snapshots", kSnapshotImagePrefix));
      }
      RETURN_IF_ERROR(CheckPath("source", request->source()));
      ASSIGN_OR_RETURN(const std::vector<Substrate*> tiers, ImageTiers());
      absl::StatusOr<sandbox::Image> first = absl::UnimplementedError("");
      for (Substrate* const tier : tiers) {
        absl::StatusOr<sandbox::Image> image =
            tier->ImportImage(request->name(), request->source());
        // Not every tier starts from every kind of image.
        const bool other_kind = absl::IsUnimplemented(image.status());
        if (!image.ok() && !other_kind) return image;
        if (absl::IsUnimplemented(first.status())) first = std::move(image);
      }
      return first;
    });
  }
  UnaryReactor* ListImages(Context* context, const sandbox::ListImagesRequest*,
                           sandbox::ListImagesResponse* response) override {
    return Do(context, [=, this]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::vector<Substrate*> tiers, ImageTiers());
      std::map<std::string, sandbox::Image> by_name;
      for (Substrate* const tier : tiers) {
        ASSIGN_OR_RETURN(const std::vector<sandbox::Image> images, tier->ListImages());
        for (const sandbox::Image& image : images) by_name.emplace(image.name(), image);
      }
      for (const auto& [name, image] : by_name) *response->add_images() = image;
      return absl::OkStatus();
    });
  }
  UnaryReactor* RemoveImage(Context* context, const sandbox::RemoveImageRequest* request,
                            sandbox::RemoveImageResponse*) override {
    return Do(context, [=, this]() -> absl::Status {
      RETURN_IF_ERROR(CheckImageName(request->name()));
      ASSIGN_OR_RETURN(const std::vector<Substrate*> tiers, ImageTiers());
      return sandboxes_->RemoveImage(request->name(), [&]() -> absl::Status {
        absl::Status worst;
        bool removed = false;
        for (Substrate* const tier : tiers) {
          const absl::Status status = tier->RemoveImage(request->name());
          removed = removed || status.ok();
          if (!status.ok() && (worst.ok() || absl::IsNotFound(worst))) worst = status;
        }
        // One that a tier never had is removed with the other tiers' copies.
        return removed && absl::IsNotFound(worst) ? absl::OkStatus() : worst;
      });
    });
  }

 private:
  using Fields = std::vector<std::pair<std::string_view, std::string>>;

  // Runs `work` on the verb pool. gRPC keeps request, response and context until Finish.
  UnaryReactor* Do(Context* context, std::function<absl::Status()> work) {
    UnaryReactor* reactor = context->DefaultReactor();
    if (absl::Status status = authorizer_->Check(*context); !status.ok()) {
      reactor->Finish(ToGrpc(status));
    } else if (!verbs_->TryPost(
                   [reactor, work = std::move(work)] { reactor->Finish(ToGrpc(work())); })) {
      reactor->Finish(ToGrpc(
          absl::UnavailableError("too many requests wait, or sandboxd is stopping: try again")));
    }
    return reactor;
  }
  template <typename Response, typename Work>
  UnaryReactor* Answer(Context* context, Response* response, Work work) {
    return Do(context, [response, work = std::move(work)]() -> absl::Status {
      ASSIGN_OR_RETURN(*response, work());
      return absl::OkStatus();
    });
  }
  absl::Status WithFiles(const std::string& sandbox_id, const Fields& paths,
                         const std::function<absl::Status(const SandboxManager::Lease&)>& verb) {
    RETURN_IF_ERROR(base::CheckId(sandbox_id, "sandbox_id", /*allow_slash=*/true));
    for (const auto& [field, path] : paths) RETURN_IF_ERROR(CheckPath(field, path));
    ASSIGN_OR_RETURN(SandboxManager::Lease lease, sandboxes_->Use(sandbox_id));
    return verb(lease);
  }
  // A sandbox that is not woken for it.
  absl::StatusOr<SandboxManager::Lease> Look(const std::string& sandbox_id) {
    RETURN_IF_ERROR(base::CheckId(sandbox_id, "sandbox_id", /*allow_slash=*/true));
    return sandboxes_->Find(sandbox_id);
  }
  // The same for a verb that changes files, which the journal does not hold.
  absl::Status Change(const std::string& sandbox_id, const Fields& paths,
                      const std::function<absl::Status(const SandboxManager::Lease&)>& verb) {
    return WithFiles(sandbox_id, paths, [&](const SandboxManager::Lease& lease) -> absl::Status {
      ASSIGN_OR_RETURN(const auto change, sandboxes_->BeginChange(sandbox_id));
      return verb(lease);
    });
  }
  static absl::Status CheckImageName(const std::string& name) {
    if (name.empty() || name.size() > kNameBytesMax ||
        name.find_first_not_of(
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-/:@") !=
            std::string::npos) {
      return absl::InvalidArgumentError(
          fmt::format("name must have 1 to {} of the characters [A-Za-z0-9._-/:@]", kNameBytesMax));
    }
    return absl::OkStatus();
  }
  // Each usable tier that starts from images keeps its own copy; never none.
  absl::StatusOr<std::vector<Substrate*>> ImageTiers() const {
    std::vector<Substrate*> usable;
    std::string why_not;
    for (const auto& [tier, substrate] : sandboxes_->tiers()) {
      const sandbox::TierInfo info = substrate->Describe();
      const auto verb = info.verbs().find("images");
      if (verb == info.verbs().end() || verb->second != "yes") continue;
      if (info.usable()) usable.push_back(substrate);
      if (!info.usable() && why_not.empty()) why_not = info.reason();
    }
    if (!usable.empty()) return usable;
    if (!why_not.empty()) return absl::UnavailableError(why_not);
    return absl::UnimplementedError(
        "images belong to the container, microvm and vm tiers, which are turned off");
  }

  const Authorizer* const authorizer_;
  WorkerPool* const verbs_;
  CallManager* const calls_;
  SandboxManager* const sandboxes_;
  WatchManager* const watches_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeSandboxService(const Authorizer* authorizer, WorkerPool* verbs,
                                                  CallManager* calls, SandboxManager* sandboxes,
                                                  WatchManager* watches) {
  return std::make_unique<SandboxServiceImpl>(authorizer, verbs, calls, sandboxes, watches);
}

}  // namespace reprise::sandboxd
