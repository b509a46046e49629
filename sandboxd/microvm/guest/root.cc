#include "sandboxd/microvm/guest/root.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/random.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>

#include "sandboxd/agent/os.h"
#include "sandboxd/agent/spawn.h"

namespace reprise::sandboxd::microvm {
namespace {

using agent::Fd;

constexpr char kModuleList[] = "/modules/order";  // one file name a line
constexpr char kAgent[] = "/reprise-agent";
constexpr char kCgroupDir[] = "/cgroup";
constexpr char kBoxGroup[] = "/cgroup/box";
constexpr char kRunDirInside[] = "/.reprise/run";
constexpr size_t kListBytesMax = 64 << 10;
constexpr int kDiskWaitMs = 30'000;
constexpr uint64_t kShmBytesMin = 1 << 20;

bool Fail(std::string* why, const std::string& what) {
  *why = what + ": " + strerror(errno);
  return false;
}

bool Mount(const char* type, const std::string& target, unsigned long flags, const char* data,
           std::string* why) {
  mkdir(target.c_str(), 0755);
  if (mount(type, target.c_str(), type, flags, data) == 0) return true;
  return Fail(why, std::string("mount ") + type + " at " + target);
}

bool WriteFile(const std::string& path, const std::string& text) {
  const Fd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  return fd.valid() &&
         write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

bool LoadModules(std::string* why) {
  const std::string list = agent::ReadSmallFile(kModuleList, kListBytesMax);
  for (size_t begin = 0; begin < list.size();) {
    const size_t end = std::min(list.find('\n', begin), list.size());
    const std::string name = list.substr(begin, end - begin);
    begin = end + 1;
    if (name.empty()) continue;
    const Fd fd(open(("/modules/" + name).c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.valid() || (syscall(SYS_finit_module, fd.get(), "", 0) != 0 && errno != EEXIST))
      return Fail(why, "load module " + name);
  }
  return true;
}

bool LoopbackUp() {
  const Fd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  strncpy(request.ifr_name, "lo", sizeof(request.ifr_name) - 1);
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  return fd.valid() && ioctl(fd.get(), SIOCSIFFLAGS, &request) == 0;
}

struct Node {
  const char* name;
  unsigned major, minor;
};
constexpr Node kNodes[] = {{"null", 1, 3},   {"zero", 1, 5},    {"full", 1, 7},
                           {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
constexpr const char* kLinks[][2] = {{"/proc/self/fd", "fd"},
                                     {"/proc/self/fd/0", "stdin"},
                                     {"/proc/self/fd/1", "stdout"},
                                     {"/proc/self/fd/2", "stderr"},
                                     {"pts/ptmx", "ptmx"}};
constexpr const char* kReadOnly[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                                     "/proc/sysrq-trigger"};
constexpr const char* kMasked[] = {"/proc/kcore", "/proc/keys", "/proc/kmsg", "/proc/timer_list",
                                   "/proc/acpi"};

bool MakeDev(const std::string& root, uint64_t memory_bytes, std::string* why) {
  const std::string dev = root + "/dev";
  if (!Mount("tmpfs", dev, MS_NOSUID | MS_NOEXEC, "mode=755,size=64k", why)) return false;
  for (const Node& node : kNodes) {
    const std::string path = dev + "/" + node.name;
    if (mknod(path.c_str(), S_IFCHR | 0666, makedev(node.major, node.minor)) != 0 ||
        chmod(path.c_str(), 0666) != 0) {
      return Fail(why, "make " + path);
    }
  }
  for (const auto& link : kLinks) {
    if (symlink(link[0], (dev + "/" + link[1]).c_str()) != 0)
      return Fail(why, std::string("make the link ") + link[1]);
  }
  const unsigned long flags = MS_NOSUID | MS_NOEXEC | MS_NODEV;
  const std::string shm =
      "mode=1777,size=" + std::to_string(std::max<uint64_t>(memory_bytes / 2, kShmBytesMin));
  return Mount("devpts", dev + "/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620",
               why) &&
         Mount("tmpfs", dev + "/shm", flags, shm.c_str(), why) &&
         Mount("mqueue", dev + "/mqueue", flags, nullptr, why);
}

bool Remount(const std::string& path, unsigned long flags) {
  if (mount(path.c_str(), path.c_str(), nullptr, MS_BIND, nullptr) != 0) return errno == ENOENT;
  return mount(nullptr, path.c_str(), nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY | flags, nullptr) ==
         0;
}

std::vector<std::string> AgentArguments(const Setup& setup, const char* run_dir) {
  std::vector<std::string> argv = {"reprise-agent",   "--run-dir",   run_dir,
                                   "--user",          setup.user,    "--working-dir",
                                   setup.working_dir, "--oom-kills", "/proc/vmstat"};
  if (!setup.home.empty()) argv.insert(argv.end(), {"--home", setup.home});
  return argv;
}

bool MountRunDir(std::string* why) {
  return Mount("tmpfs", kRunDir, MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=700,size=64k", why);
}

// The agent is the init of the sandbox's processes.
pid_t CloneForAgent() {
  return static_cast<pid_t>(
      syscall(SYS_clone, CLONE_NEWPID | CLONE_NEWNS | SIGCHLD, nullptr, nullptr, nullptr, nullptr));
}

// In the child: its own mounts, then the agent. Says on the console why it cannot.
void BecomeAgent(const Setup& setup) {
  std::string why;
  auto die = [&](const std::string& what) {
    fprintf(stderr, "reprise-guest: %s\n", what.c_str());
    _exit(1);
  };
  const std::string root = kNewRoot;
  const unsigned long flags = MS_NOSUID | MS_NOEXEC | MS_NODEV;
  const Fd program(open(kAgent, O_PATH | O_CLOEXEC));
  if (!program.valid()) die(std::string("open the agent: ") + strerror(errno));
  if (!WriteFile(std::string(kBoxGroup) + "/cgroup.procs", "0"))
    die(std::string("enter the control group: ") + strerror(errno));
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) die("make mounts private");
  if (!Mount("proc", root + "/proc", flags, nullptr, &why) ||
      !Mount("sysfs", root + "/sys", flags | MS_RDONLY, nullptr, &why) ||
      !MakeDev(root, setup.memory_bytes, &why)) {
    die(why);
  }
  for (const char* const path : kReadOnly) {
    if (!Remount(root + path, flags)) die(std::string("protect ") + path);
  }
  for (const char* const path : kMasked) {
    const std::string target = root + path;
    if (mount("/dev/null", target.c_str(), nullptr, MS_BIND, nullptr) != 0 && errno != ENOENT &&
        errno != ENOTDIR) {
      die(std::string("mask ") + path);
    }
  }
  mkdir((root + "/.reprise").c_str(), 0755);
  mkdir((root + kRunDirInside).c_str(), 0700);
  if (mount(kRunDir, (root + kRunDirInside).c_str(), nullptr, MS_BIND, nullptr) != 0)
    die("bind the agent's directory");
  if (chdir(kNewRoot) != 0 || mount(".", "/", nullptr, MS_MOVE, nullptr) != 0 || chroot(".") != 0 ||
      chdir("/") != 0) {
    die(std::string("enter the root: ") + strerror(errno));
  }
  if (!RunFirst()) die("run before the sandbox");
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) die("forbid new privileges");
  const std::vector<std::string> argv = AgentArguments(setup, kRunDirInside);
  const auto arguments = agent::Pointers(argv), environment = agent::Pointers(setup.env);
  syscall(SYS_execveat, program.get(), "", arguments.data(), environment.data(), AT_EMPTY_PATH);
  die(std::string("start the agent: ") + strerror(errno));
}

}  // namespace

bool RunFirst() {
  const sched_param priority{.sched_priority = 1};
  return sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &priority) == 0;
}

bool PrepareKernel(std::string* why) {
  return Mount("devtmpfs", "/dev", MS_NOSUID | MS_NOEXEC, nullptr, why) &&
         Mount("proc", "/proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, nullptr, why) &&
         Mount("sysfs", "/sys", MS_NOSUID | MS_NOEXEC | MS_NODEV, nullptr, why) && LoadModules(why);
}

bool MountRoot(const Setup& setup, std::string* why) {
  const int64_t deadline = agent::NowMs() + kDiskWaitMs;
  while (access("/dev/vda", F_OK) != 0) {
    if (agent::NowMs() > deadline) return Fail(why, "the disk of the image did not appear");
    usleep(2000);
  }
  mkdir("/image", 0755), mkdir("/over", 0755), mkdir(kNewRoot, 0755);
  if (mount("/dev/vda", "/image", "erofs", MS_RDONLY, nullptr) != 0)
    return Fail(why, "mount the image");
  if (!Mount("tmpfs", "/over", 0, "mode=700", why)) return false;
  // The root of a mount that others may enter; the tmpfs itself is private.
  mkdir("/over/upper", 0755), mkdir("/over/work", 0700);
  if (mount("overlay", kNewRoot, "overlay", MS_NODEV,
            "lowerdir=/image,upperdir=/over/upper,workdir=/over/work") != 0) {
    return Fail(why, "mount the overlay");
  }
  return LoopbackUp() || Fail(why, "bring the loopback device up");
}

bool MakeCgroup(const Setup& setup, std::string* why) {
  if (!Mount("cgroup2", kCgroupDir, MS_NOSUID | MS_NOEXEC | MS_NODEV, nullptr, why)) return false;
  if (!WriteFile("/cgroup/cgroup.subtree_control", "+memory +pids"))
    return Fail(why, "turn control groups on");
  if (mkdir(kBoxGroup, 0755) != 0) return Fail(why, "make the control group");
  return WriteFile("/cgroup/box/memory.max", std::to_string(setup.memory_bytes)) ||
         Fail(why, "limit the memory");
}

pid_t StartAgent(const Setup& setup, std::string* why) {
  if (!MountRunDir(why)) return -1;
  const pid_t pid = CloneForAgent();
  if (pid == 0) BecomeAgent(setup);
  if (pid < 0) Fail(why, "fork the agent");
  return pid;
}

pid_t StartAgentHere(const Setup& setup, std::string* why) {
  if (!MountRunDir(why)) return -1;
  const pid_t pid = CloneForAgent();
  if (pid < 0) return Fail(why, "fork the agent"), -1;
  if (pid > 0) return pid;
  auto die = [](const char* what) {
    fprintf(stderr, "reprise-guest: %s: %s\n", what, strerror(errno));
    _exit(1);
  };
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) die("follow the parent");
  const unsigned long flags = MS_NOSUID | MS_NOEXEC | MS_NODEV;
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) die("make mounts private");
  if (mount("proc", "/proc", "proc", flags, nullptr) != 0) die("mount proc");
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) die("forbid new privileges");
  const std::vector<std::string> argv = AgentArguments(setup, kRunDir);
  const auto arguments = agent::Pointers(argv);
  // Beside this program, or wherever the system has it.
  char self[PATH_MAX] = {};
  if (readlink("/proc/self/exe", self, sizeof(self) - 1) > 0) {
    const std::string program(self);
    const std::string beside = program.substr(0, program.rfind('/') + 1) + "reprise-agent";
    execv(beside.c_str(), arguments.data());
  }
  execvp("reprise-agent", arguments.data());
  die("start reprise-agent");
  return -1;
}

bool ApplyRenew(const Renew& renew, std::string* why) {
  const timeval now{renew.wall_us / 1'000'000, renew.wall_us % 1'000'000};
  if (settimeofday(&now, nullptr) != 0) return Fail(why, "set the clock");
  if (!renew.entropy.empty()) {
    const Fd random(open("/dev/urandom", O_WRONLY | O_CLOEXEC));
    if (renew.entropy.size() != kEntropyBytes) return Fail(why, "entropy of another size");
    // A rand_pool_info: how many bits count, how many bytes follow.
    const int head[2] = {static_cast<int>(kEntropyBytes * 8), static_cast<int>(kEntropyBytes)};
    char pool[sizeof(head) + kEntropyBytes];
    memcpy(pool, head, sizeof(head));
    memcpy(pool + sizeof(head), renew.entropy.data(), kEntropyBytes);
    if (!random.valid() || ioctl(random.get(), RNDADDENTROPY, pool) != 0 ||
        ioctl(random.get(), RNDRESEEDCRNG) != 0) {
      return Fail(why, "renew the entropy");
    }
  }
  if (!renew.hostname.empty() && sethostname(renew.hostname.data(), renew.hostname.size()) != 0)
    return Fail(why, "set the host name");
  if (renew.pids != 0 && !WriteFile("/cgroup/box/pids.max", std::to_string(renew.pids)))
    return Fail(why, "limit the processes");
  const std::string size = "size=" + std::to_string(renew.disk_bytes);
  if (renew.disk_bytes != 0 && mount(nullptr, "/over", nullptr, MS_REMOUNT, size.c_str()) != 0)
    return Fail(why, "limit the disk");
  // Through the overlay: never through a link that the image holds.
  if (renew.machine_id.empty()) return true;
  const std::string path = std::string(kNewRoot) + "/etc/machine-id";
  const Fd id(open(path.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC | O_NOFOLLOW));
  const std::string line = renew.machine_id + "\n";
  if (id.valid() &&
      write(id.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
    return Fail(why, "write /etc/machine-id");
  }
  return true;
}

}  // namespace reprise::sandboxd::microvm
