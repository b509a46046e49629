#include "sandboxd/function/worker_supply.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/function/control.h"

namespace reprise::sandboxd {
namespace {

constexpr size_t kPrefixBytes = 6;

}  // namespace

WorkerSupply::WorkerSupply(WorkerSupplyOptions options)
    : options_(std::move(options)), prefix_(base::RandomHex(kPrefixBytes)) {
  absl::MutexLock lock(&mutex_);
  failure_ = StartZygote();
}

WorkerSupply::~WorkerSupply() {
  Stop();
  if (listener_.joinable()) listener_.join();
}

absl::Status WorkerSupply::StartZygote() {
  if (::access(options_.program.c_str(), X_OK) != 0) {
    return base::ErrnoStatus(
        errno, fmt::format("cannot run {} (build it, or name its directory with --helper-dir)",
                           options_.program));
  }
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
    return base::ErrnoStatus(errno, "cannot make a socket pair for the zygote");
  }
  base::UniqueFd ours(pair[0]), theirs(pair[1]);
  const char* argv[] = {options_.program.c_str(), "--state", options_.state_dir.c_str(), "--name",
                        options_.name.c_str(),    nullptr};
  const pid_t pid = ::fork();
  if (pid == 0) {
    // Only what may run between fork and exec of a process with threads.
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    ::setsid();
    if (theirs.get() == function::kControlFd) {
      ::fcntl(theirs.get(), F_SETFD, 0);
    } else {
      ::dup2(theirs.get(), function::kControlFd);
    }
    ::close_range(function::kControlFd + 1, ~0u, CLOSE_RANGE_CLOEXEC);
    ::execv(argv[0], const_cast<char**>(argv));
    ::_exit(127);
  }
  if (pid < 0) return base::ErrnoStatus(errno, "cannot fork the zygote");
  control_ = std::move(ours);
  zygote_ = pid;
  listener_ = std::thread([this, control = control_.get()] { Listen(control); });
  return absl::OkStatus();
}

absl::Status WorkerSupply::usable(std::string* note) {
  absl::MutexLock lock(&mutex_);
  const absl::Time deadline = absl::Now() + kHelloMax;
  while (failure_.ok() && !hello_ && !stopped_) {
    if (changed_.WaitWithDeadline(&mutex_, deadline)) break;
  }
  if (!failure_.ok()) return failure_;
  if (!hello_) return absl::UnavailableError("the zygote of the function tier does not answer");
  *note = note_;
  return absl::OkStatus();
}

void WorkerSupply::Refill() {
  if (stopped_ || !hello_ || !failure_.ok()) return;
  const size_t wanted = std::max(options_.pool, waiters_);
  while (ready_.size() + making_.size() < wanted &&
         ready_.size() + making_.size() + taken_.size() < options_.max) {
    function::SpawnRequest request;
    const std::string id = fmt::format("{}-{}", prefix_, next_++);
    std::strncpy(request.id, id.c_str(), sizeof(request.id) - 1);
    // A full socket means that enough is asked for already; the answers make room.
    if (::send(control_.get(), &request, sizeof(request), MSG_NOSIGNAL | MSG_DONTWAIT) !=
        sizeof(request))
      return;
    making_.insert(id);
  }
}

absl::StatusOr<std::string> WorkerSupply::Take() {
  absl::MutexLock lock(&mutex_);
  if (waiters_ >= kWaitersMax) {
    return absl::ResourceExhaustedError(
        fmt::format("{} calls wait for a worker of the function tier", waiters_));
  }
  ++waiters_;
  const absl::Time deadline = absl::Now() + kWaitMax;
  bool timed_out = false;
  Refill();
  while (ready_.empty() && failure_.ok() && !stopped_ && !timed_out) {
    timed_out = changed_.WaitWithDeadline(&mutex_, deadline);
  }
  --waiters_;
  if (stopped_) return absl::CancelledError("the daemon is stopping");
  if (!ready_.empty()) {
    std::string id = std::move(ready_.front());
    ready_.pop_front();
    taken_.insert(id);
    Refill();
    return id;
  }
  if (!failure_.ok())
    return absl::UnavailableError(
        fmt::format("function tier: {}", std::string(failure_.message())));
  return absl::ResourceExhaustedError(
      fmt::format("no worker of the function tier became free in {} s; {} are at work "
                  "(raise --function-max)",
                  absl::ToInt64Seconds(kWaitMax), taken_.size()));
}

void WorkerSupply::GiveBack(std::string id) {
  absl::MutexLock lock(&mutex_);
  if (taken_.erase(id) == 0) return;  // it is gone
  ready_.push_back(std::move(id));
  changed_.SignalAll();
}

void WorkerSupply::Stop() {
  absl::MutexLock lock(&mutex_);
  if (std::exchange(stopped_, true)) return;
  if (control_.valid())
    ::shutdown(control_.get(), SHUT_RDWR);  // workers and zygote see the end of the daemon
  changed_.SignalAll();
}

void WorkerSupply::Listen(int control) {
  while (true) {
    function::ZygoteEvent event;
    const ssize_t count = ::recv(control, &event, sizeof(event), 0);
    if (count < 0 && errno == EINTR) continue;
    absl::MutexLock lock(&mutex_);
    if (count != sizeof(event)) {
      if (!stopped_ && failure_.ok()) {
        failure_ =
            absl::UnavailableError("the zygote ended (see the daemon's log; restart sandboxd)");
        base::LogError("the zygote of the function tier ended");
      }
      ready_.clear();
      ::waitpid(zygote_, nullptr, 0);
      zygote_ = -1;
      changed_.SignalAll();
      return;
    }
    event.id[sizeof(event.id) - 1] = event.text[sizeof(event.text) - 1] = '\0';
    const std::string id = event.id, text = event.text;
    switch (event.kind) {
      case function::ZygoteEvent::kHello:
        hello_ = true;
        note_ = text;
        break;
      case function::ZygoteEvent::kReady:
        if (making_.erase(id) != 0) ready_.push_back(id);
        failures_ = 0;
        break;
      case function::ZygoteEvent::kFailed:
        making_.erase(id);
        base::LogWarn(fmt::format("function tier: {}", text));
        if (id.empty() || ++failures_ >= kFailuresMax) failure_ = absl::UnavailableError(text);
        break;
      case function::ZygoteEvent::kGone:
        making_.erase(id);
        taken_.erase(id);
        ready_.erase(std::remove(ready_.begin(), ready_.end(), id), ready_.end());
        break;
    }
    Refill();
    changed_.SignalAll();
  }
}

}  // namespace reprise::sandboxd
