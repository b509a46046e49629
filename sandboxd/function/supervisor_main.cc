// reprise-supervisor: the zygote of the function tier. It prepares once what all workers share
// (root, filter, cgroups), then forks a worker for each request of the daemon. Single-threaded and
// small, so that a fork is cheap.
//
// Usage: reprise-supervisor --state DIR --name NAME, with the daemon's control socket as
// descriptor 3.
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <string>

#include "sandboxd/agent/os.h"
#include "sandboxd/function/cgroup.h"
#include "sandboxd/function/control.h"
#include "sandboxd/function/filter.h"
#include "sandboxd/function/landlock.h"
#include "sandboxd/function/root.h"
#include "sandboxd/function/worker.h"
#include "sandboxd/network/launch.h"

namespace {

namespace function = reprise::sandboxd::function;
using function::kControlFd;
using function::ZygoteEvent;

void Send(ZygoteEvent::Kind kind, const std::string& id, const std::string& text) {
  ZygoteEvent event;
  event.kind = kind;
  strncpy(event.id, id.c_str(), sizeof(event.id) - 1);
  strncpy(event.text, text.c_str(), sizeof(event.text) - 1);
  (void)!send(kControlFd, &event, sizeof(event), MSG_NOSIGNAL);
}

std::string BesideThisProgram(const char* name) {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  const std::string program(path, static_cast<size_t>(length > 0 ? length : 0));
  return program.substr(0, program.rfind('/') + 1) + name;
}

int Fail(const std::string& why) {
  Send(ZygoteEvent::kFailed, "", why);
  return 1;
}

class Zygote {
 public:
  explicit Zygote(function::WorkerSetup setup) : setup_(std::move(setup)) {
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, nullptr);
    signals_.Reset(signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK));
    (void)!getrandom(&next_uid_, sizeof(next_uid_), 0);  // two daemons rarely meet
  }

  // Until the daemon closes its end.
  void Run() {
    while (true) {
      pollfd fds[2] = {{kControlFd, POLLIN, 0}, {signals_.get(), POLLIN, 0}};
      if (poll(fds, 2, -1) < 0 && errno != EINTR) return;
      if (fds[1].revents != 0) Reap();
      if (fds[0].revents == 0) continue;
      function::SpawnRequest request;
      const ssize_t count = recv(kControlFd, &request, sizeof(request), 0);
      if (count < 0 && errno == EINTR) continue;
      if (count != sizeof(request)) return;
      request.id[sizeof(request.id) - 1] = '\0';
      Spawn(request.id);
    }
  }

 private:
  void Spawn(const std::string& id) {
    const uint32_t uid = function::kHostUidBase + next_uid_++ % function::kHostUids;
    const pid_t pid = fork();
    if (pid == 0) {
      signals_.Reset();
      function::RunWorker(setup_, id, uid);
    }
    if (pid < 0)
      return Send(ZygoteEvent::kFailed, id, std::string("cannot fork: ") + strerror(errno));
    workers_[pid] = id;
  }

  void Reap() {
    signalfd_siginfo info;
    while (read(signals_.get(), &info, sizeof(info)) > 0) {
    }
    for (pid_t pid; (pid = waitpid(-1, nullptr, WNOHANG)) > 0;) {
      auto found = workers_.find(pid);
      if (found == workers_.end()) continue;
      Send(ZygoteEvent::kGone, found->second, "");
      workers_.erase(found);
    }
  }

  const function::WorkerSetup setup_;
  reprise::sandboxd::agent::Fd signals_;
  uint32_t next_uid_ = 0;
  std::map<pid_t, std::string> workers_;
};

}  // namespace

int main(int argc, char** argv) {
  std::string state, name;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--state") == 0) state = argv[i + 1];
    if (strcmp(argv[i], "--name") == 0) name = argv[i + 1];
  }
  int type = 0;
  socklen_t size = sizeof(type);
  if (state.empty() || name.empty() ||
      getsockopt(kControlFd, SOL_SOCKET, SO_TYPE, &type, &size) != 0) {
    fprintf(stderr,
            "reprise-supervisor: started by sandboxd only (needs --state, --name and a control "
            "socket)\n");
    return 2;
  }
  clearenv();
  signal(SIGPIPE, SIG_IGN);
  signal(SIGINT, SIG_IGN);  // of a terminal: the daemon decides
  prctl(PR_SET_DUMPABLE, 0);
  umask(077);
  if (geteuid() != 0)
    return Fail("needs root (to make cgroups and map users); run sandboxd as root");
  const function::CgroupTree cgroups = function::CgroupTree::Make(name);
  std::string why;
  const std::vector<sock_filter> filter = function::MakeFilter(&why);
  if (filter.empty()) return Fail(why);
  function::WorkerSetup setup;
  setup.state_dir = state;
  setup.root = state + "/" + function::kRootDir;
  setup.gate = BesideThisProgram(reprise::sandboxd::network::kGateProgram);
  setup.cgroups = &cgroups;
  setup.filter = &filter;
  umask(022);
  if (!function::BuildRoot(setup.root, &why)) return Fail(why);
  const int landlock = function::LandlockAbi();
  Send(ZygoteEvent::kHello, "",
       cgroups.note() + (landlock == 0 ? "; no Landlock in this kernel"
                                       : "; Landlock ABI " + std::to_string(landlock)));
  Zygote(std::move(setup)).Run();
  cgroups.RemoveBase();
  return 0;
}
