#include "clients/cli/interrupt.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <utility>

#include "clients/cli/context.h"

namespace reprise::cli {

Interrupt::Interrupt() : wake_(::eventfd(0, EFD_CLOEXEC)) {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGINT);
  sigaddset(&signals_, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals_, &before_);
}

Interrupt::~Interrupt() {
  if (watcher_.joinable()) {
    ::eventfd_write(wake_.get(), 1);
    watcher_.join();
  }
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

void Interrupt::Watch(std::function<void()> on_signal) {
  watcher_ = std::thread([this, on_signal = std::move(on_signal)] { Run(on_signal); });
}

int Interrupt::Wait() {
  int signal = 0;
  sigwait(&signals_, &signal);
  interrupted_ = true;
  return signal;
}

void Interrupt::Run(const std::function<void()>& on_signal) {
  base::UniqueFd signals(::signalfd(-1, &signals_, SFD_CLOEXEC));
  pollfd ready[] = {{signals.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
  while (true) {
    if (::poll(ready, 2, -1) < 0) continue;
    if (ready[1].revents != 0) return;
    signalfd_siginfo info;
    if (::read(signals.get(), &info, sizeof(info)) != sizeof(info)) continue;
    if (interrupted_.exchange(true)) ::_exit(kExitFailed);
    on_signal();
  }
}

}  // namespace reprise::cli
