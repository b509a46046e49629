#include "sandboxd/microvm/vmm_process.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "sandboxd/link/agent_link.h"

namespace reprise::sandboxd::microvm {
namespace {

constexpr rlim_t kOpenFiles = 256;

// What execve takes; valid as long as `strings`.
std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& string : strings) pointers.push_back(const_cast<char*>(string.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// A /dev of its own with what it may open. (/dev/kvm belongs to whom the host likes.)
bool MakeDevices(const VmConfig& config) {
  struct stat kvm {};
  if (config.accelerator == "kvm" && stat("/dev/kvm", &kvm) != 0) return false;
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=64k") != 0) {
    return false;
  }
  return config.accelerator != "kvm" || (mknod("/dev/kvm", S_IFCHR | 0600, kvm.st_rdev) == 0 &&
                                         chown("/dev/kvm", config.uid, config.uid) == 0);
}

}  // namespace

void Tail::Read() {
  char buffer[4096];
  while (fd.valid()) {
    const ssize_t count = read(fd.get(), buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return;
    if (count == 0) return fd.Reset();
    Append(std::string_view(buffer, static_cast<size_t>(count)));
  }
}

void Tail::Append(std::string_view data) {
  text_ += data;
  end_ += data.size();
  // Not with every piece: the rest moves each time.
  if (text_.size() > 2 * bytes_max_) text_.erase(0, text_.size() - bytes_max_);
}

ConsoleData Tail::From(uint64_t from) const {
  ConsoleData out;
  out.end = end_;
  out.begin = std::min(std::max(from, end_ - text_.size()), end_);
  out.data = text_.substr(text_.size() - (end_ - out.begin), kConsolePieceBytes);
  return out;
}

absl::StatusOr<Pair> MakePair() {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
    return base::ErrnoStatus(errno, "make a socket pair");
  Pair pair{base::UniqueFd(fds[0]), base::UniqueFd(fds[1])};
  if (fcntl(pair.ours.get(), F_SETFL, O_NONBLOCK) != 0)
    return base::ErrnoStatus(errno, "make a socket not block");
  return pair;
}

std::string LastLine(std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  return Printable(text.substr(text.rfind('\n') + 1));
}

void BecomeVmm(const VmConfig& config, const VmmProcess& process) {
  auto die = [](const char* what) {
    dprintf(2, "%s: %s\n", what, strerror(errno));
    _exit(127);
  };
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0 || dup2(null, 0) < 0 || dup2(process.words, 1) < 0 || dup2(process.words, 2) < 0)
    _exit(127);
  for (const int fd : process.inherited) fcntl(fd, F_SETFD, 0);
  if (process.dir >= 0 && fchdir(process.dir) != 0) die("enter its directory");
  if (process.image >= 0 && dup2(process.image, kImageFd) < 0) die("place its disk");
  // Not from a terminal, and nothing of the supervisor's signal mask.
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  setsid();
  const rlimit files{kOpenFiles, kOpenFiles}, core{0, 0};
  setrlimit(RLIMIT_NOFILE, &files);
  setrlimit(RLIMIT_CORE, &core);
  if (!config.disk.empty()) {
    // What is written beyond is an error of the guest's disk.
    const rlimit bytes{config.disk_bytes, config.disk_bytes};
    setrlimit(RLIMIT_FSIZE, &bytes);
    signal(SIGXFSZ, SIG_IGN);
  }
  umask(077);
  if (config.uid != 0) {
    if (unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) != 0)
      die("leave the host's namespaces");
    if (!MakeDevices(config)) die("make its devices");
    if (setgroups(0, nullptr) != 0 || setresgid(config.uid, config.uid, config.uid) != 0 ||
        setresuid(config.uid, config.uid, config.uid) != 0) {
      die("become a user of its own");
    }
  }
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) die("forbid new privileges");
  // After the change of user, which clears it.
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) die("follow the supervisor");
  if (getppid() != process.parent) _exit(127);
  const std::vector<std::string> environment = {"PATH=/usr/bin:/bin", "LANG=C"};
  const auto argv = Pointers(process.arguments), envp = Pointers(environment);
  execve(argv[0], argv.data(), envp.data());
  die("execute it");
  _exit(127);
}

}  // namespace reprise::sandboxd::microvm
