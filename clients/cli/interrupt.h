// Ctrl-C and SIGTERM as an event: blocked while the command starts its threads, then read by a
// thread of its own that tells the command to wind up. A second signal ends the process at once;
// what the journal acknowledged stays.
#pragma once

#include <signal.h>

#include <atomic>
#include <functional>
#include <thread>

#include "base/fd.h"

namespace reprise::cli {

class Interrupt {
 public:
  // Blocks the signals for this thread and those that it starts. Make it before any other thread.
  Interrupt();
  // Lets the signals through again.
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  // From now on the first signal calls `on_signal` (once, on another thread). Call it once.
  void Watch(std::function<void()> on_signal);
  bool interrupted() const { return interrupted_.load(); }
  // Waits for a signal on this thread, instead of Watch. Returns its number.
  int Wait();

 private:
  void Run(const std::function<void()>& on_signal);

  sigset_t signals_, before_;
  base::UniqueFd wake_;  // eventfd: the watcher shall end
  std::atomic<bool> interrupted_{false};
  std::thread watcher_;
};

}  // namespace reprise::cli
