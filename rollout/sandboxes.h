// The sandbox daemon as a rollout needs it: a sandbox a trajectory, one command at a time in it,
// each at most once.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::rollout {

namespace sandbox = ::reprise::sandbox::v1;

// How a command ended, with the output that was kept.
struct CallOutput {
  sandbox::Result result;
  std::string stdout_data, stderr_data;
};

// Thread-safe. Calls wait; they try again while the daemon is away, and end early with CANCELLED
// after Shutdown().
class Sandboxes {
 public:
  virtual ~Sandboxes() = default;
  // Makes the sandbox unless it is there already.
  virtual absl::Status Create(const std::string& id, const sandbox::SandboxSpec& spec) = 0;
  // Runs the request to its end, or gives the recorded result of its call_id.
  virtual absl::StatusOr<CallOutput> Execute(const sandbox::ExecuteRequest& request) = 0;
  virtual absl::Status Stop(const std::string& id) = 0;
  // Makes `id` as another one was after its call `at_call`, unless it is there already.
  // FAILED_PRECONDITION "DIVERGED: ..." when a call that was run again gave another result.
  virtual absl::Status Fork(const std::string& from, const std::string& id,
                            const std::string& at_call) = 0;
  // Forgets a stopped one with its calls, for ever. OK when there is none; FAILED_PRECONDITION when
  // it is not stopped, or when snapshots of it are kept.
  virtual absl::Status Forget(const std::string& id) = 0;
  // Takes it off the processors until the next request to it. UNIMPLEMENTED where its tier cannot.
  virtual absl::Status Pause(const std::string& id) = 0;
  virtual void Shutdown() = 0;
};

}  // namespace reprise::rollout
