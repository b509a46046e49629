// The verbs of sandboxd as a command uses them: each is one request, sent once, and errors are as
// the daemon words them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::cli {

namespace sandbox_wire = ::reprise::sandbox::v1;

struct SandboxTarget {
  std::string server;      // of sandboxd: unix:/PATH or HOST:PORT
  std::string state;       // state directory of a running daemon; "" with a server
  std::string token_file;  // for HOST:PORT
};

// Where sandboxd listens by this target. Usage error when it names nothing.
absl::StatusOr<std::string> SandboxAddress(const SandboxTarget& target);
// The token of a file, without the white space at its end; "" for no file.
absl::StatusOr<std::string> ReadToken(const std::string& path);

class SandboxApi {
 public:
  // UNAVAILABLE, with what to type, when no daemon answers there.
  static absl::StatusOr<std::unique_ptr<SandboxApi>> Connect(const SandboxTarget& target);
  virtual ~SandboxApi() = default;

  virtual absl::StatusOr<sandbox_wire::CreateResponse> Create(
      const sandbox_wire::CreateRequest& request) = 0;
  virtual absl::StatusOr<sandbox_wire::ListResponse> List() = 0;
  virtual absl::StatusOr<sandbox_wire::StopResponse> Stop(const std::string& sandbox_id) = 0;
  virtual absl::Status Pause(const std::string& sandbox_id) = 0;
  virtual absl::Status Resume(const std::string& sandbox_id) = 0;
  virtual absl::Status SetNetwork(const sandbox_wire::SetNetworkRequest& request) = 0;
  virtual absl::StatusOr<sandbox_wire::GetNetworkResponse> GetNetwork(
      const std::string& sandbox_id) = 0;
  virtual absl::StatusOr<sandbox_wire::ListTiersResponse> ListTiers() = 0;
  virtual absl::StatusOr<sandbox_wire::SnapshotInfo> Snapshot(
      const sandbox_wire::SnapshotRequest& request) = 0;
  virtual absl::StatusOr<sandbox_wire::ListSnapshotsResponse> ListSnapshots(
      const std::string& sandbox_id) = 0;
  virtual absl::StatusOr<sandbox_wire::CreateResponse> Fork(
      const sandbox_wire::ForkRequest& request) = 0;
  virtual absl::StatusOr<sandbox_wire::RestoreResponse> Restore(const std::string& sandbox_id) = 0;

  // Streams a call to `on_event` (Started, then Output) and returns how it ended.
  using OnEvent = std::function<void(const sandbox_wire::ExecuteEvent&)>;
  virtual absl::StatusOr<sandbox_wire::Result> Execute(const sandbox_wire::ExecuteRequest& request,
                                                       const OnEvent& on_event) = 0;
  virtual absl::StatusOr<sandbox_wire::Result> Attach(const std::string& call_id,
                                                      const OnEvent& on_event) = 0;
  virtual absl::Status WriteStdin(const sandbox_wire::WriteStdinRequest& request) = 0;
  virtual absl::Status Resize(const sandbox_wire::ResizeRequest& request) = 0;
  virtual absl::Status Cancel(const std::string& call_id) = 0;
  virtual absl::StatusOr<sandbox_wire::ListCallsResponse> ListCalls(
      const std::string& sandbox_id) = 0;

  virtual absl::StatusOr<sandbox_wire::ConsoleResponse> Console(
      const sandbox_wire::ConsoleRequest& request) = 0;
  virtual absl::StatusOr<sandbox_wire::ScreenshotResponse> Screenshot(
      const std::string& sandbox_id) = 0;
  virtual absl::Status SendInput(const sandbox_wire::SendInputRequest& request) = 0;
  // Runs until `on_event` is false, the watch ends, or CancelWatch.
  virtual absl::Status Watch(
      const sandbox_wire::WatchRequest& request,
      const std::function<bool(const sandbox_wire::WatchEvent&)>& on_event) = 0;
  // From any thread; Watch then answers CANCELLED.
  virtual void CancelWatch() = 0;

  virtual absl::Status ReadFile(const std::string& sandbox_id, const std::string& path,
                                const std::function<absl::Status(std::string_view)>& on_data) = 0;
  // `next` gives the content piece by piece, "" at its end. Returns the bytes written.
  virtual absl::StatusOr<uint64_t> WriteFile(
      const std::string& sandbox_id, const std::string& path, uint32_t mode,
      const std::function<absl::StatusOr<std::string>()>& next) = 0;

  virtual absl::StatusOr<sandbox_wire::Image> ImportImage(const std::string& name,
                                                          const std::string& source) = 0;
  virtual absl::StatusOr<sandbox_wire::ListImagesResponse> ListImages() = 0;
  virtual absl::Status RemoveImage(const std::string& name) = 0;
};

}  // namespace reprise::cli
