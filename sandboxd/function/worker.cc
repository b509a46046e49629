#include "sandboxd/function/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "sandboxd/agent/agent.h"
#include "sandboxd/function/control.h"
#include "sandboxd/function/inner.h"
#include "sandboxd/network/launch.h"

namespace reprise::sandboxd::function {
namespace {

constexpr int kPrepareMs = 30'000;
constexpr int kLeaderMs = 5'000;
constexpr int kBacklog = 16;
constexpr size_t kSetupTextMax = 400;
constexpr unsigned long kNamespaces = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET |
                                      CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;

void Send(ZygoteEvent::Kind kind, const std::string& id, const std::string& text) {
  ZygoteEvent event;
  event.kind = kind;
  strncpy(event.id, id.c_str(), sizeof(event.id) - 1);
  strncpy(event.text, text.c_str(), sizeof(event.text) - 1);
  (void)!send(kControlFd, &event, sizeof(event), MSG_NOSIGNAL);
}

// Hands the one call to the inside, and ends it.
class FunctionLauncher final : public agent::Launcher {
 public:
  FunctionLauncher(const WorkerSetup& setup, std::string id, agent::Fd link, pid_t inner)
      : setup_(setup), id_(std::move(id)), link_(std::move(link)), inner_(inner) {}

  bool Launch(const agent::Start& start, const agent::Identity& identity,
              const std::vector<std::string>& env, const std::string& files,
              agent::SpawnedCommand* command, std::string* why) override {
    if (!start.user.empty())
      return Refuse(why, "the function tier has one user; leave `user` empty");
    if (start.binds.size() / 3 > kJobBindsMax) return Refuse(why, "too many binds");
    // From here on nobody may conclude that the call was never started; who made the file first
    // decided.
    const agent::Fd mark(open(kStartedFile, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!mark.valid()) return Refuse(why, "the call was given up before it started");
    if (const int error = setup_.cgroups->SetLimits(id_, start.memory_bytes, start.pids);
        error != 0) {
      return Refuse(why, std::string("cannot set the limits of the cgroup: ") + strerror(error));
    }
    if (!start.resolver.empty() && !OpenNetwork(start, why)) return false;
    agent::Fd job_stdin, job_stdout, job_stderr, job_report;
    if (!agent::MakePipe(&command->report, &job_report, why)) return false;
    std::vector<int> fds = {job_report.get()};
    if (!start.on_terminal()) {
      if (!agent::MakePipe(&job_stdin, &command->stdin_fd, why) ||
          !agent::MakePipe(&command->stdout_fd, &job_stdout, why) ||
          !agent::MakePipe(&command->stderr_fd, &job_stderr, why)) {
        return false;
      }
      fds.insert(fds.end(), {job_stdin.get(), job_stdout.get(), job_stderr.get()});
    }
    std::vector<agent::Fd> mounts;
    for (size_t i = 0; i + 2 < start.binds.size(); i += 3) {
      mounts.push_back(CloneMount(start.binds[i], start.binds[i + 2] == "rw"));
      if (!mounts.back().valid())
        return Refuse(why, "cannot bind " + start.binds[i] + ": " + strerror(errno));
      fds.push_back(mounts.back().get());
    }
    agent::Start job = start;
    job.env = env;
    if (!SendJob(link_.get(), job, files, fds)) return Refuse(why, "the prepared sandbox is gone");
    if (start.on_terminal() && !TakeTerminal(command, why)) return false;
    for (const agent::Fd* fd :
         {&command->stdin_fd, &command->stdout_fd, &command->stderr_fd, &command->report}) {
      if (fd->valid()) agent::SetNonBlocking(*fd);
    }
    command->keeper = inner_;
    return true;
  }

  void KillAll(pid_t inner) override { kill(inner, SIGKILL); }
  void CommandEnded(pid_t inner) override { kill(inner, SIGKILL); }

  pid_t LeaderPid(pid_t reported) override {
    const Greeting greeting = ReceiveGreeting();
    return greeting.byte == kInnerLeader ? greeting.sender : 0;
  }

  void Judge(const agent::Start& start, agent::End* end) override {
    if (const uint64_t peak = setup_.cgroups->PeakMemory(id_); peak > 0)
      end->memory_peak_bytes = peak;
    const auto kind = static_cast<agent::EndKind>(end->kind);
    if (kind == agent::EndKind::kSetupFailed) {
      char text[kSetupTextMax];
      const ssize_t count = recv(link_.get(), text, sizeof(text), MSG_DONTWAIT);
      // The first byte that a command's own process sends is its greeting, not a message.
      if (count > 1)
        end->message = "cannot start " + start.argv[0].substr(0, 200) + ": " +
                       std::string(text, static_cast<size_t>(count));
      return;
    }
    if (kind != agent::EndKind::kExited && kind != agent::EndKind::kSignaled) return;
    if (setup_.cgroups->OomKills(id_) > 0 &&
        !(kind == agent::EndKind::kExited && end->exit_code == 0)) {
      end->kind = static_cast<uint8_t>(agent::EndKind::kMemoryExceeded);
      end->message.clear();
      return;
    }
    Launcher::Judge(start, end);
  }

 private:
  static bool Refuse(std::string* why, std::string what) {
    *why = std::move(what);
    return false;
  }

  // The gate ends with the inside.
  bool OpenNetwork(const agent::Start& start, std::string* why) const {
    network::GateLaunch launch;
    launch.program = setup_.gate;
    launch.dir = ".";  // the run directory
    launch.resolver = start.resolver;
    launch.policy = start.network;
    launch.sandbox = inner_;
    std::string reason;
    return network::LaunchGate(launch, &reason) ||
           Refuse(why, "cannot open the network: " + reason);
  }

  struct Greeting {
    char byte = 0;  // 0: none came
    pid_t sender = 0;
    agent::Fd sent;
  };
  Greeting ReceiveGreeting() {
    Greeting greeting;
    iovec piece{&greeting.byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred)) + CMSG_SPACE(sizeof(int))];
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    pollfd readable{link_.get(), POLLIN, 0};
    if (poll(&readable, 1, kLeaderMs) != 1 ||
        recvmsg(link_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != 1) {
      return {};
    }
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      ucred sender{};
      int fd = -1;
      if (header->cmsg_type == SCM_CREDENTIALS) {
        memcpy(&sender, CMSG_DATA(header), sizeof(sender));
        greeting.sender = sender.pid;
      } else if (header->cmsg_type == SCM_RIGHTS) {
        memcpy(&fd, CMSG_DATA(header), sizeof(fd));
        greeting.sent.Reset(fd);
      }
    }
    return greeting;
  }

  // The terminal that the inside made for its job; nothing of the job has run yet.
  bool TakeTerminal(agent::SpawnedCommand* command, std::string* why) {
    Greeting greeting = ReceiveGreeting();
    if (greeting.byte == kInnerTerminal && greeting.sent.valid())
      return agent::TakeMaster(std::move(greeting.sent), command, why);
    char text[kSetupTextMax];
    const ssize_t count = recv(link_.get(), text, sizeof(text), MSG_DONTWAIT);
    *why = "the prepared sandbox made no terminal";
    if (greeting.byte != 0 && count > 0)
      *why = greeting.byte + std::string(text, static_cast<size_t>(count));
    return false;
  }

  // A detached copy of the mount at `path`, with its flags set while this process may.
  static agent::Fd CloneMount(const std::string& path, bool writable) {
    constexpr unsigned kFlags =
        OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW | AT_RECURSIVE;
    agent::Fd fd(static_cast<int>(syscall(SYS_open_tree, AT_FDCWD, path.c_str(), kFlags)));
    if (!fd.valid()) return fd;
    mount_attr attributes{};
    attributes.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (writable ? 0 : MOUNT_ATTR_RDONLY);
    attributes.propagation = MS_PRIVATE;
    if (syscall(SYS_mount_setattr, fd.get(), "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes,
                sizeof(attributes)) != 0) {
      const int error = errno;
      fd.Reset();
      errno = error;
    }
    return fd;
  }

  const WorkerSetup& setup_;
  const std::string id_;
  const agent::Fd link_;
  const pid_t inner_;
};

class Worker {
 public:
  Worker(const WorkerSetup& setup, std::string id, uint32_t host_uid)
      : setup_(setup), id_(std::move(id)), host_uid_(host_uid) {}

  [[noreturn]] void Run() {
    setsid();
    const std::string run_dir = setup_.state_dir + "/" + kWorkersDir + "/" + id_;
    if (Check(mkdir(run_dir.c_str(), 0700) == 0 && chdir(run_dir.c_str()) == 0,
              "make " + run_dir) &&
        MakeSandbox() && Listen()) {
      Send(ZygoteEvent::kReady, id_, "");
      Serve();
    } else {
      Send(ZygoteEvent::kFailed, id_, why_);
    }
    End(run_dir);
  }

 private:
  bool Check(bool done, const std::string& what) {
    if (!done && why_.empty()) why_ = "cannot " + what + ": " + strerror(errno);
    return done;
  }
  bool CheckError(int error, const std::string& what) {
    errno = error;
    return Check(error == 0, what);
  }
  bool WriteFile(const std::string& path, const std::string& text) {
    const agent::Fd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
    return Check(fd.valid() &&
                     write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()),
                 "write " + path);
  }

  bool MakeSandbox() {
    if (!CheckError(setup_.cgroups->CreateGroup(id_), "make the cgroup of " + id_)) return false;
    int pair[2];
    if (!Check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "make a socket pair"))
      return false;
    link_.Reset(pair[0]);
    agent::Fd inner_link(pair[1]);
    inner_ = static_cast<pid_t>(
        syscall(SYS_clone, kNamespaces | SIGCHLD, nullptr, nullptr, nullptr, nullptr));
    if (inner_ == 0) {
      const int kept = 3;
      if (inner_link.get() != kept) dup2(inner_link.get(), kept);
      fcntl(kept, F_SETFD, FD_CLOEXEC);
      close_range(kept + 1, ~0u, 0);
      sigset_t none;
      sigemptyset(&none);
      sigprocmask(SIG_SETMASK, &none, nullptr);
      RunInner(agent::Fd(kept), setup_.root, *setup_.filter, setup_.cgroups->has_memory(),
               setup_.cgroups->has_pids());
    }
    if (!Check(inner_ > 0, "make the namespaces")) return false;
    inner_link.Reset();
    const std::string proc = "/proc/" + std::to_string(inner_);
    const std::string map = std::to_string(kJobUid) + " " + std::to_string(host_uid_) + " 1\n";
    return WriteFile(proc + "/uid_map", map) && WriteFile(proc + "/gid_map", map) &&
           CheckError(setup_.cgroups->AddProcess(id_, inner_), "put the worker into its cgroup") &&
           Greet();
  }

  bool Greet() {
    if (!Check(send(link_.get(), &kInnerGo, 1, MSG_NOSIGNAL) == 1, "greet the inside"))
      return false;
    pollfd readable{link_.get(), POLLIN, 0};
    char answer[kSetupTextMax] = {};
    if (!Check(poll(&readable, 1, kPrepareMs) == 1, "wait for the inside")) return false;
    const ssize_t count = recv(link_.get(), answer, sizeof(answer), 0);
    if (count == 1 && answer[0] == kInnerReady) {
      const int on = 1;
      return Check(setsockopt(link_.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) == 0,
                   "ask for credentials");
    }
    why_ = count > 0 ? std::string(answer, static_cast<size_t>(count))
                     : "the inside ended while it was prepared";
    return false;
  }

  bool Listen() {
    listener_.Reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, agent::kSocketName,
            sizeof(address.sun_path) - 1);  // in the working directory
    return Check(
        listener_.valid() &&
            bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
            listen(listener_.get(), kBacklog) == 0,
        "listen");
  }

  void Serve() {
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    agent::Fd signals(signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK));
    FunctionLauncher launcher(setup_, id_, std::move(link_), inner_);
    agent::AgentOptions options;
    options.working_dir = "/";
    options.launcher = &launcher;
    options.single_call = true;
    options.life_fd = kControlFd;
    agent::Agent(std::move(options), std::move(listener_), std::move(signals)).Run();
  }

  // The directory goes last: as long as it is there, it tells whether the call was started.
  [[noreturn]] void End(const std::string& run_dir) {
    if (inner_ > 0) {
      kill(inner_, SIGKILL);
      while (waitpid(inner_, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
    setup_.cgroups->RemoveGroup(id_);
    setup_.cgroups->RemoveBase();
    unlink(agent::kSocketName);
    unlink(network::kGateSocket);
    unlink(kStartedFile);
    if (chdir("/") == 0) rmdir(run_dir.c_str());
    _exit(0);
  }

  const WorkerSetup& setup_;
  const std::string id_;
  const uint32_t host_uid_;
  std::string why_;
  agent::Fd link_, listener_;
  pid_t inner_ = -1;
};

}  // namespace

void RunWorker(const WorkerSetup& setup, const std::string& id, uint32_t host_uid) {
  Worker(setup, id, host_uid).Run();
}

}  // namespace reprise::sandboxd::function
