// A call that runs under an owner of its own process (reprise-agent, reprise-supervisor), as the
// daemon's RunningCall. One thread reads the connections of all such calls and reports to their
// sinks.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "sandboxd/link/agent_link.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

// Who runs a call, and what the tier knows better than that process.
struct CallOwner {
  std::string run_dir;  // holds the owner's socket
  // Corrects a result by what the owner cannot see; `tag` is that of the call's Start, also after
  // an Attach. May be empty. Runs on the loop's thread, also after the call was dropped: it owns
  // what it uses.
  std::function<void(uint64_t tag, sandbox::Result* result)> judge = {};
  // Why the owner is gone, where the tier knows; "" where it does not. As `judge`.
  std::function<std::string()> lost = {};
};

// What every owner is told of a request: command, environment with REPRISE_CALL_ID, directory, user
// and the limits that one call has.
agent::Start ToStart(const sandbox::ExecuteRequest& request);

class RemoteCallLoop {
 public:
  static absl::StatusOr<std::unique_ptr<RemoteCallLoop>> Make();
  // Stops reading; calls go on without the daemon.
  ~RemoteCallLoop();
  RemoteCallLoop(const RemoteCallLoop&) = delete;
  RemoteCallLoop& operator=(const RemoteCallLoop&) = delete;

  // Starts `start` at its owner, with its standard input and encoded InputFiles. An error means
  // that nothing was started. Everything later, a refusal of the owner too, comes through the sink.
  absl::StatusOr<std::unique_ptr<RunningCall>> Start(const CallOwner& owner, agent::Start start,
                                                     const std::string& stdin_data,
                                                     const std::string& files,
                                                     std::unique_ptr<CallSink> sink);

  // kAttached: the owner has the call, output goes on at `from`. kNeverStarted: the owner is there
  // and does not know it. kLost, with the reason: the owner is gone, or has not the output at
  // `from` any more.
  Attachment Attach(const CallOwner& owner, const std::string& call_id, OutputPosition from,
                    std::unique_ptr<CallSink>& sink);

 private:
  class Remote;
  class Handle;
  RemoteCallLoop() = default;
  absl::Status Open();
  void Watch(std::shared_ptr<Remote> remote) ABSL_LOCKS_EXCLUDED(mutex_);
  void Forget(uint64_t id) ABSL_LOCKS_EXCLUDED(mutex_);
  void Wake();
  void Loop();

  base::UniqueFd epoll_, wake_;
  std::atomic<bool> stop_{false};
  absl::Mutex mutex_;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<uint64_t, std::shared_ptr<Remote>> remotes_ ABSL_GUARDED_BY(mutex_);
  // Not read yet: an Attach may have taken their first frames from the socket already.
  std::vector<uint64_t> fresh_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace reprise::sandboxd
