// A call that runs under an owner of its own process (reprise-agent, reprise-supervisor), as the
// daemon's RunningCall. One thread reads the connections of all such calls and reports to their
// sinks.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "sandboxd/link/agent_link.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

class RemoteCallLoop {
 public:
  static absl::StatusOr<std::unique_ptr<RemoteCallLoop>> Make();
  // Stops reading; calls go on without the daemon.
  ~RemoteCallLoop();
  RemoteCallLoop(const RemoteCallLoop&) = delete;
  RemoteCallLoop& operator=(const RemoteCallLoop&) = delete;

  // Starts `start` at the owner whose run directory is given, with its standard input and encoded
  // InputFiles. An error means that nothing was started. Everything later, a refusal of the owner
  // too, comes through the sink.
  absl::StatusOr<std::unique_ptr<RunningCall>> Start(const std::string& run_dir, agent::Start start,
                                                     const std::string& stdin_data,
                                                     const std::string& files,
                                                     std::unique_ptr<CallSink> sink);

  // kAttached: the owner has the call, output goes on at `from`. kNeverStarted: the owner is there
  // and does not know it. kLost, with the reason: the owner is gone, or has not the output at
  // `from` any more.
  Attachment Attach(const std::string& run_dir, const std::string& call_id, OutputPosition from,
                    std::unique_ptr<CallSink>& sink);

 private:
  class Remote;
  class Handle;
  RemoteCallLoop() = default;
  absl::Status Open();
  void Watch(std::shared_ptr<Remote> remote) ABSL_LOCKS_EXCLUDED(mutex_);
  void Forget(uint64_t id) ABSL_LOCKS_EXCLUDED(mutex_);
  void Loop();

  base::UniqueFd epoll_, wake_;
  std::atomic<bool> stop_{false};
  absl::Mutex mutex_;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<uint64_t, std::shared_ptr<Remote>> remotes_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace reprise::sandboxd
