// One tier of isolation as the daemon sees it. The call manager owns the journal and the life of a call; a substrate
// only makes sandboxes and runs commands in them, and can find both again after the daemon was killed.
//
// Life of a call:  Reserve -> (INTENT is written with the placement) -> Start -> OnOutput... -> OnEnd
//                  -> (RESULT is written) -> Running::Release.
// After a restart: Reattach(placement) answers kAttached, kNeverStarted (safe to Start) or kLost.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::sandboxd {

namespace sandbox = ::reprise::sandbox::v1;

// Receives what a call does, on a thread of the substrate; must not block for long. OnEnd is called exactly once,
// last. For each stream, OnOutput comes in order without gaps, starting at the offset asked for.
class CallSink {
 public:
  virtual ~CallSink() = default;
  virtual void OnStarted(std::vector<sandbox::StepTime> steps) = 0;
  virtual void OnOutput(sandbox::Stream stream, uint64_t offset, std::string_view data) = 0;
  virtual void OnEnd(sandbox::Result result) = 0;
};

// A call that was started or attached to. Dropping it detaches: the call goes on without the daemon.
class RunningCall {
 public:
  virtual ~RunningCall() = default;
  virtual absl::Status WriteStdin(std::string_view data, bool eof) = 0;
  virtual absl::Status Signal(int signal) = 0;
  // The window of its terminal. INVALID_ARGUMENT for a call that has none.
  virtual absl::Status Resize(uint32_t rows, uint32_t columns) = 0;
  // Kills everything of the call; OnEnd follows with CANCELLED.
  virtual absl::Status Cancel() = 0;
  // Output up to these offsets is in the journal: the owner of the call may forget it (flow control: a call whose
  // output is not acknowledged blocks after about 1 MiB, and loses nothing).
  virtual void Acknowledge(sandbox::Stream stream, uint64_t upto) = 0;
  // RESULT is in the journal: the owner may forget the call.
  virtual void Release() = 0;
};

// Follows what happens to the entries of one directory. Dropping it ends the watch.
class FileWatch {
 public:
  virtual ~FileWatch() = default;
  // Readable when TryNext may have something new.
  virtual int fd() const = 0;
  // The next event if it is there, nullopt when it is not (yet); WATCH_EVENT_KIND_STARTED was taken already. Errors end
  // the watch: NOT_FOUND (the directory is gone), UNAVAILABLE (its sandbox is).
  virtual absl::StatusOr<std::optional<sandbox::WatchEvent>> TryNext() = 0;
};

struct SandboxRef {
  std::string id;
  const sandbox::SandboxSpec* spec = nullptr;  // outlives the call it is passed to
  std::string placement;                       // as CreateSandbox returned it
};

enum class AttachState { kAttached, kNeverStarted, kLost };
struct Attachment {
  AttachState state = AttachState::kLost;
  std::string reason;                 // for kLost
  std::unique_ptr<RunningCall> call;  // for kAttached
};

// The files of a sandbox as an image.
struct SnapshotImage {
  sandbox::Image image;
  uint64_t stored_bytes = 0;  // that the store did not have before, as stored
};

// How far the journal is, per stream.
struct OutputPosition {
  uint64_t stdout_offset = 0, stderr_offset = 0;
};

class Substrate {
 public:
  virtual ~Substrate() = default;

  // What it is, and the limits of calls that ask for none: known without a look at the host.
  virtual sandbox::Tier tier() const = 0;
  virtual sandbox::Limits default_limits() const = 0;
  // Both, usability on this host with its reason, verbs. May try the host out.
  virtual sandbox::TierInfo Describe() = 0;
  // Whether what one call leaves is there for the next.
  virtual bool KeepsState() const { return true; }
  // Orderly end: idle workers go, sandboxes and running calls stay for the next daemon.
  virtual void Shutdown() = 0;

  // Makes a sandbox and returns its placement. `steps` receives the time of each step.
  virtual absl::StatusOr<std::string> CreateSandbox(const std::string& id, const sandbox::SandboxSpec& spec,
                                                    std::vector<sandbox::StepTime>* steps) = 0;
  // Finds a sandbox after a restart of the daemon. Not OK: it is lost, and the message says why.
  virtual absl::Status RecoverSandbox(const SandboxRef& sandbox) = 0;
  // Kills and removes. OK when it is already gone.
  virtual absl::Status StopSandbox(const SandboxRef& sandbox) = 0;
  virtual absl::Status PauseSandbox(const SandboxRef& sandbox) = 0;
  virtual absl::Status ResumeSandbox(const SandboxRef& sandbox) = 0;

  // Puts sandbox.spec->network() in force for a sandbox that is there; what it forbids is cut on return. Called when
  // the journal has it. RecoverSandbox does the same for what it finds. The default answers UNIMPLEMENTED.
  virtual absl::Status SetNetwork(const SandboxRef& sandbox);
  // What came of it so far; zeros where nothing has a network. The default answers zeros.
  virtual absl::StatusOr<sandbox::NetworkCounters> CountNetwork(const SandboxRef& sandbox);

  // Keeps the sandbox's files as the image `name`, replacing one of that name: its own image and one more layer. The
  // sandbox stands still meanwhile, and goes on, or stays paused, as it was. On return everything is on stable storage.
  // The default answers UNIMPLEMENTED with the reason.
  virtual absl::StatusOr<SnapshotImage> SnapshotSandbox(const SandboxRef& sandbox, const std::string& name);

  // Names who will run the next call (a supervisor); nothing runs yet. May wait for a free worker, not for ever:
  // RESOURCE_EXHAUSTED after the tier's queue limit.
  virtual absl::StatusOr<std::string> Reserve(const SandboxRef& sandbox) = 0;
  // Gives back a reservation that is not used.
  virtual void Unreserve(const std::string& placement) = 0;
  // Starts the command. `request` has its limits resolved (no zeros) and the sandbox's env merged in.
  // A failure to start is reported by OnEnd with SETUP_FAILED; a Status error means that nothing was started.
  virtual absl::StatusOr<std::unique_ptr<RunningCall>> Start(const SandboxRef& sandbox, const std::string& placement,
                                                             const sandbox::ExecuteRequest& request,
                                                             std::unique_ptr<CallSink> sink) = 0;
  // After a restart. OnOutput goes on at `from`. `sink` is kept only for kAttached.
  virtual Attachment Reattach(const SandboxRef& sandbox, const std::string& placement, const std::string& call_id,
                              OutputPosition from, std::unique_ptr<CallSink>& sink) = 0;

  // Every sandbox and call that the journal still needs was asked for by RecoverSandbox and Reattach: whatever else
  // the last daemon left behind (calls whose RESULT is written, unused reservations, half-made sandboxes) may go.
  // Called once, before the first new request. The default does nothing.
  virtual void RecoveryDone();

  // Files. The default answers UNIMPLEMENTED with the reason.
  virtual absl::Status ReadFile(const SandboxRef& sandbox, const std::string& path,
                                const std::function<absl::Status(std::string_view)>& chunk);
  virtual absl::Status WriteFile(const SandboxRef& sandbox, const std::string& path, uint32_t mode,
                                 const std::function<absl::StatusOr<std::string>()>& next);  // "" ends
  virtual absl::StatusOr<std::vector<sandbox::FileInfo>> ListDir(const SandboxRef& sandbox, const std::string& path);
  virtual absl::Status MakeDir(const SandboxRef& sandbox, const std::string& path);
  virtual absl::Status Move(const SandboxRef& sandbox, const std::string& from, const std::string& to);
  virtual absl::Status Remove(const SandboxRef& sandbox, const std::string& path);
  // In force when it returns.
  virtual absl::StatusOr<std::unique_ptr<FileWatch>> Watch(const SandboxRef& sandbox, const std::string& path,
                                                           bool recursive);

  // A machine's console, screen, keyboard and pointer. The default answers UNIMPLEMENTED.
  virtual absl::StatusOr<sandbox::ConsoleResponse> Console(const SandboxRef& sandbox,
                                                           const sandbox::ConsoleRequest& request);
  virtual absl::StatusOr<sandbox::ScreenshotResponse> Screenshot(const SandboxRef& sandbox);
  virtual absl::Status SendInput(const SandboxRef& sandbox, const sandbox::SendInputRequest& request);

  // Images. The default answers UNIMPLEMENTED. So does ImportImage for a source of another tier's kind.
  virtual absl::StatusOr<sandbox::Image> ImportImage(const std::string& name, const std::string& source);
  virtual absl::StatusOr<std::vector<sandbox::Image>> ListImages();
  virtual absl::Status RemoveImage(const std::string& name);
};

}  // namespace reprise::sandboxd
