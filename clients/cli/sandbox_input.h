// What goes from this process into a call while it runs: standard input, and the size of the
// terminal where the call has one.
#pragma once

#include <signal.h>

#include <memory>
#include <string>
#include <thread>

#include "base/fd.h"
#include "clients/cli/sandbox_api.h"

namespace reprise::cli {

class CallInput {
 public:
  // Make it before any other thread: with a terminal it blocks the signals that it waits for. `api`
  // is used from Start on.
  CallInput(const std::unique_ptr<SandboxApi>* api, std::string call_id, bool forward_stdin,
            bool on_terminal);
  ~CallInput();
  CallInput(const CallInput&) = delete;
  CallInput& operator=(const CallInput&) = delete;

  // From the call's start to its end.
  void Start();

 private:
  void Run();
  // False when nothing more is to be sent.
  bool ForwardPiece();
  void HandleSignal();

  const std::unique_ptr<SandboxApi>* const api_;
  const std::string call_id_;
  const bool forward_stdin_, on_terminal_;
  sigset_t signals_, before_;
  base::UniqueFd wake_;  // eventfd: the call has ended
  base::UniqueFd signal_fd_;
  std::thread thread_;
};

}  // namespace reprise::cli
