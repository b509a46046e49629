// Running calls over connections to their agents: one thread waits on all of them and feeds their
// sinks. A call that is dropped goes on with its agent; a later daemon attaches to it again.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "sandboxd/agent/protocol.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

// Whose agent, and what the tier knows better.
struct AgentEndpoint {
  std::string run_dir;  // holds the agent's socket
  // Adds to a result what the agent cannot see; `tag` is what the call was started with. May be
  // empty. Runs on the reactor's thread, also after the call was dropped: it must own what it uses.
  std::function<void(uint64_t tag, sandbox::Result* result)> refine;
};

class CallReactor {
 public:
  static absl::StatusOr<std::unique_ptr<CallReactor>> Make();
  // Detaches from every call: no sink is called any more. REQUIRES: not on the reactor's own
  // thread.
  ~CallReactor();
  CallReactor(const CallReactor&) = delete;
  CallReactor& operator=(const CallReactor&) = delete;

  // As Substrate::Start. `steps` is passed to the sink. Once a call is dropped, no callback of its
  // sink begins any more; one that runs at that moment still ends.
  absl::StatusOr<std::unique_ptr<RunningCall>> Start(const AgentEndpoint& endpoint,
                                                     const agent::Start& start,
                                                     std::string_view stdin_data,
                                                     std::vector<sandbox::StepTime> steps,
                                                     std::unique_ptr<CallSink> sink);
  // As Substrate::Reattach.
  Attachment Attach(const AgentEndpoint& endpoint, const std::string& call_id, OutputPosition from,
                    std::unique_ptr<CallSink>& sink);

 private:
  struct Core;
  explicit CallReactor(std::shared_ptr<Core> core) : core_(std::move(core)) {}

  const std::shared_ptr<Core> core_;  // calls may outlive the reactor
  std::thread thread_;
};

}  // namespace reprise::sandboxd
