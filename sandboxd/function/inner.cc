#include "sandboxd/function/inner.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/mount.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>

#include "sandboxd/agent/spawn_child.h"
#include "sandboxd/agent/terminal.h"
#include "sandboxd/function/control.h"
#include "sandboxd/function/filter.h"
#include "sandboxd/function/landlock.h"
#include "sandboxd/function/root.h"

namespace reprise::sandboxd::function {
namespace {

constexpr char kScratchInodes[] = "65536";
constexpr uint64_t kScratchBytesDefault = 64 << 20;
constexpr uint64_t kPlaceBytes =
    1 << 20;  // of the tmpfs over an open place: it holds mount points only
constexpr char kWorkDir[] = "/work";
constexpr char kTerminalsDir[] = "/dev/pts";
constexpr char kOwnTerminal[] = "/dev/tty";
constexpr const char* kMaskedProc[] = {"acpi",       "asound",        "kcore",        "keys",
                                       "key-users",  "latency_stats", "sched_debug",  "scsi",
                                       "timer_list", "timer_stats",   "sysrq-trigger"};
constexpr const char* kReadOnlyProc[] = {"bus", "fs", "irq", "sys"};

bool ReadAll(int fd, void* data, size_t bytes) {
  auto* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t count = read(fd, at, bytes);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    at += count;
    bytes -= static_cast<size_t>(count);
  }
  return true;
}

bool WriteAll(int fd, const void* data, size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t count = send(fd, at, bytes, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    at += count;
    bytes -= static_cast<size_t>(count);
  }
  return true;
}

// `data` with descriptors on its first byte.
bool SendDescriptors(int link, const void* data, size_t bytes, const std::vector<int>& fds) {
  iovec piece{const_cast<void*>(data), bytes};
  std::vector<char> control(CMSG_SPACE(sizeof(int) * fds.size()));
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
  memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  return sendmsg(link, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes);
}

class Inner {
 public:
  Inner(agent::Fd link, std::string root, const std::vector<sock_filter>& filter,
        bool memory_by_cgroup, bool pids_by_cgroup)
      : link_(std::move(link)),
        root_(std::move(root)),
        filter_(filter),
        memory_by_cgroup_(memory_by_cgroup),
        pids_by_cgroup_(pids_by_cgroup) {}

  [[noreturn]] void Run() {
    char go = 0;
    if (!ReadAll(link_.get(), &go, 1)) _exit(0);
    if (!Prepare()) {
      WriteAll(link_.get(), why_.data(), why_.size());
      _exit(1);
    }
    WriteAll(link_.get(), &kInnerReady, 1);
    if (!ReceiveJob()) _exit(0);
    if (start_.on_terminal() && !MakeTerminal()) {
      WriteAll(link_.get(), why_.data(), why_.size());
      _exit(1);
    }
    StartJob();
    Watch();
  }

 private:
  bool Check(bool done, const std::string& what) {
    if (!done && why_.empty()) why_ = "cannot " + what + ": " + strerror(errno);
    return done;
  }
  bool Mount(const std::string& source, const std::string& target, const char* type,
             unsigned long flags, const std::string& options = "") {
    return Check(mount(source.c_str(), target.c_str(), type, flags, options.c_str()) == 0,
                 "mount " + target);
  }
  static std::string ScratchOptions(uint64_t bytes) {
    return "mode=0755,size=" + std::to_string(bytes) + ",nr_inodes=" + kScratchInodes;
  }

  // Up to the new root this is still the host's root user, who may pass the daemon's private
  // directories, with capabilities in the new user namespace only. The old root must stay until
  // /proc is mounted: the kernel gives a new one only to who can see one.
  bool Prepare() {
    umask(022);
    return Mount("", "/", nullptr, MS_REC | MS_PRIVATE) &&
           Mount(root_, root_, nullptr, MS_BIND | MS_REC) &&
           Check(chdir(root_.c_str()) == 0, "enter the root") &&
           Check(syscall(SYS_pivot_root, ".", ".") == 0, "change the root") && BecomeUser() &&
           Proc() && Check(umount2(".", MNT_DETACH) == 0, "leave the host's root") &&
           Check(chdir("/") == 0, "enter the root") && Scratch() && PrepareLandlock() &&
           Check(sethostname("function", 8) == 0, "set the host name");
  }

  // The mapping has this one user. Capabilities of the user namespace stay until the job starts.
  bool BecomeUser() {
    if (!Check(setgroups(0, nullptr) == 0 && setresgid(kJobUid, kJobUid, kJobUid) == 0 &&
                   setresuid(kJobUid, kJobUid, kJobUid) == 0,
               "become the sandbox's user")) {
      return false;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 0);
    return true;
  }

  bool Proc() {
    const std::string proc = "/proc";
    if (!Mount("proc", proc, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)) return false;
    for (const char* name : kMaskedProc) {
      const std::string path = proc + "/" + name;
      struct stat info {};
      if (stat(path.c_str(), &info) != 0) continue;
      const bool masked = S_ISDIR(info.st_mode)
                              ? Mount("none", path, "tmpfs",
                                      MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=0k")
                              : Mount("/dev/null", path, nullptr, MS_BIND);
      if (!masked) return false;
    }
    for (const char* name : kReadOnlyProc) {
      const std::string path = proc + "/" + name;
      if (access(path.c_str(), F_OK) != 0) continue;
      constexpr unsigned long kFlags = MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
      if (!Mount(path, path, nullptr, MS_BIND | MS_REC) ||
          !Mount("", path, nullptr, kFlags | MS_REMOUNT))
        return false;
    }
    return true;
  }

  // One tmpfs with one quota for everything that may be written.
  bool Scratch() {
    const std::string work = kWorkDir;
    if (!Mount("scratch", work, "tmpfs", MS_NOSUID | MS_NODEV,
               ScratchOptions(kScratchBytesDefault)))
      return false;
    for (const char* name : {"shm", "tmp", "work"}) {
      const std::string path = work + "/" + name;
      if (!Check(mkdir(path.c_str(), 0755) == 0, "make " + path)) return false;
      const std::string target = name[0] == 's' ? "/dev/shm" : name[0] == 't' ? "/tmp" : kWorkDir;
      if (name[0] != 'w') chmod(path.c_str(), 01777);
      if (!Mount(path, target, nullptr, MS_BIND)) return false;
    }
    return true;
  }

  bool PrepareLandlock() {
    landlock_ = Landlock::Make();
    if (!landlock_.valid()) return true;
    for (const char* path : {kWorkDir, "/tmp", "/dev/shm", "/dev/null", "/dev/zero", "/dev/full",
                             "/dev/random", "/dev/urandom", kOwnTerminal, "/proc"}) {
      if (std::string_view(path) == kOwnTerminal && access(path, F_OK) != 0) continue;
      if (!Check(landlock_.AllowWrite(path), std::string("allow writing to ") + path)) return false;
    }
    return true;
  }

  // Two lengths and two payloads; the descriptors come with the first bytes.
  bool ReceiveJob() {
    uint32_t lengths[2] = {};
    iovec piece{lengths, sizeof(lengths)};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * (kJobFds + kJobBindsMax))];
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    ssize_t count = 0;
    do {
      count = recvmsg(link_.get(), &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
    } while (count < 0 && errno == EINTR);
    if (count != sizeof(lengths)) return false;
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_type != SCM_RIGHTS) continue;
      const size_t fds = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      const int* first = reinterpret_cast<const int*>(CMSG_DATA(header));
      for (size_t i = 0; i < fds; ++i) fds_.emplace_back(first[i]);
    }
    std::string start(lengths[0], '\0'), files(lengths[1], '\0');
    return !fds_.empty() && ReadAll(link_.get(), start.data(), start.size()) &&
           ReadAll(link_.get(), files.data(), files.size()) && agent::Decode(start, &start_) &&
           (files.empty() || agent::Decode(files, &files_));
  }

  // A devpts of this worker alone, mounted for the few jobs that need one. Its master goes to the
  // supervisor, its other end takes the places of the job's pipes.
  bool MakeTerminal() {
    if (!Mount("devpts", kTerminalsDir, "devpts", MS_NOSUID | MS_NOEXEC,
               "newinstance,ptmxmode=0666,mode=0600") ||
        (landlock_.valid() &&
         !Check(landlock_.AllowWrite(kTerminalsDir), "allow writing to a terminal"))) {
      return false;
    }
    agent::Identity owner;
    owner.uid = owner.gid = kJobUid;
    agent::Terminal terminal;
    if (!agent::OpenTerminal(start_.pty_rows, start_.pty_columns, owner, &terminal, &why_))
      return false;
    std::vector<agent::Fd> streams;
    for (int stream = 0; stream < 3; ++stream)
      streams.emplace_back(fcntl(terminal.slave.get(), F_DUPFD_CLOEXEC, 0));
    fds_.insert(fds_.begin() + kJobStdin, std::make_move_iterator(streams.begin()),
                std::make_move_iterator(streams.end()));
    return Check(SendDescriptors(link_.get(), &kInnerTerminal, 1, {terminal.master.get()}),
                 "hand over the terminal");
  }

  // The report pipe takes failures from here on: nothing of the job has run yet.
  [[noreturn]] void Fail() {
    std::string text = why_.substr(0, 400);
    agent::Report report;
    report.kind = agent::Report::kStartFailed;
    report.value = errno;
    report.step = agent::kSandboxStep;
    agent::Tell(fds_[kJobReport].get(), report);
    WriteAll(link_.get(), text.data(), text.size());
    _exit(1);
  }

  bool LayIn() {
    if (start_.disk_bytes > 0 &&
        !Check(mount("", "/tmp", nullptr, MS_REMOUNT | MS_NOSUID | MS_NODEV,
                     ScratchOptions(start_.disk_bytes).c_str()) == 0,
               "size the scratch space")) {
      return false;
    }
    if (fds_.size() != kJobFds + start_.binds.size() / 3) {
      why_ = "the binds of the job and their mounts do not match";
      return false;
    }
    for (size_t i = 0; i + 2 < start_.binds.size(); i += 3) {
      if (!Bind(fds_[kJobFds + i / 3].get(), start_.binds[i + 1], start_.binds[i + 2] == "rw"))
        return false;
    }
    if (!MakeDirs(start_.working_dir)) return false;
    for (size_t i = 0; i < files_.paths.size(); ++i) {
      if (!InputFile(files_.paths[i], files_.contents[i], files_.modes[i])) return false;
    }
    return true;
  }

  bool MakeDirs(const std::string& path) {
    for (size_t at = 1; at <= path.size(); ++at) {
      if (at < path.size() && path[at] != '/') continue;
      const std::string part = path.substr(0, at);
      if (access(part.c_str(), F_OK) == 0 || mkdir(part.c_str(), 0755) == 0) continue;
      return Check(false, "make the directory " + part + " (possible below /work, /tmp, /dev/shm)");
    }
    return true;
  }

  bool InputFile(const std::string& path, const std::string& content, const std::string& mode) {
    const std::string full = start_.working_dir + "/" + path;
    if (!MakeDirs(full.substr(0, full.rfind('/')))) return false;
    const mode_t bits = static_cast<mode_t>(std::strtoul(mode.c_str(), nullptr, 8));
    const agent::Fd fd(
        open(full.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!Check(fd.valid(), "make the input file " + path)) return false;
    size_t at = 0;
    while (at < content.size()) {
      const ssize_t count = write(fd.get(), content.data() + at, content.size() - at);
      if (count < 0 && errno == EINTR) continue;
      if (!Check(count > 0, "write the input file " + path)) return false;
      at += static_cast<size_t>(count);
    }
    return Check(fchmod(fd.get(), bits == 0 ? 0644 : bits & 0777) == 0, "set the mode of " + path);
  }

  // Puts a prepared mount at `target`. The root is read-only: where the target is not there, it is
  // made on a small tmpfs over the open place that it lies in.
  bool Bind(int mount_fd, const std::string& target, bool writable) {
    struct stat source {};
    if (!Check(fstat(mount_fd, &source) == 0, "look at the bind for " + target)) return false;
    if (access(target.c_str(), F_OK) != 0) {
      for (const char* place : kOpenPlaces) {
        if (!target.starts_with(std::string(place) + "/") || opened_[place]) continue;
        opened_[place] = true;
        if (!Mount("place", place, "tmpfs", MS_NOSUID | MS_NODEV,
                   "mode=0755,size=" + std::to_string(kPlaceBytes))) {
          return false;
        }
      }
      const size_t slash = target.rfind('/');
      if (!MakeDirs(S_ISDIR(source.st_mode) ? target : target.substr(0, slash))) {
        why_ = "cannot bind at " + target +
               ": it is not in the sandbox's root and not below one of /work, /tmp, "
               "/data, /home, /media, /mnt, /opt, /srv, /var";
        return false;
      }
      if (!S_ISDIR(source.st_mode)) {
        const agent::Fd file(
            open(target.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
        if (!Check(file.valid(), "make the bind's target " + target)) return false;
      }
    }
    if (!Check(syscall(SYS_move_mount, mount_fd, "", AT_FDCWD, target.c_str(),
                       MOVE_MOUNT_F_EMPTY_PATH) == 0,
               "bind at " + target)) {
      return false;
    }
    return !writable || !landlock_.valid() ||
           Check(landlock_.AllowWrite(target), "allow writing to " + target);
  }

  // In the command's process, just before its exec.
  static bool Harden(const void* context) {
    const Inner& self = *static_cast<const Inner*>(context);
    for (int capability = 0; capability <= 63; ++capability)
      prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0 || !agent::SetCapabilities(0))
      return false;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && self.landlock_.Restrict() &&
           InstallFilter(self.filter_);
  }

  void StartJob() {
    if (!LayIn()) Fail();
    const std::vector<std::string> candidates = agent::Candidates(start_.argv[0], start_.env);
    const auto argv = agent::Pointers(start_.argv), envp = agent::Pointers(start_.env),
               paths = agent::Pointers(candidates);
    std::vector<agent::ChildLimit> limits = {{RLIMIT_CORE, {0, 0}},
                                             {RLIMIT_MEMLOCK, {64 << 10, 64 << 10}}};
    auto limit = [&](int resource, uint64_t value) {
      if (value > 0) limits.push_back({resource, {value, value}});
    };
    if (start_.cpu_seconds > 0)
      limits.push_back({RLIMIT_CPU, {start_.cpu_seconds, start_.cpu_seconds + 1}});
    limit(RLIMIT_FSIZE, start_.file_bytes);
    limit(RLIMIT_NOFILE, start_.open_files);
    if (!pids_by_cgroup_) limit(RLIMIT_NPROC, start_.pids);
    if (!memory_by_cgroup_) limit(RLIMIT_AS, start_.memory_bytes);
    agent::ChildPlan plan;
    plan.argv = argv.data();
    plan.envp = envp.data();
    plan.candidates = paths.data();
    plan.working_dir = start_.working_dir.c_str();
    plan.limits = limits.data();
    plan.limit_count = limits.size();
    plan.stdin_fd = fds_[kJobStdin].get();
    plan.stdout_fd = fds_[kJobStdout].get();
    plan.stderr_fd = fds_[kJobStderr].get();
    plan.report_fd = fds_[kJobReport].get();
    plan.best_effort = start_.best_effort != 0;
    plan.on_terminal = start_.on_terminal();
    plan.harden = &Inner::Harden;
    plan.harden_context = this;
    leader_ = fork();
    if (!Check(leader_ >= 0, "start a process")) Fail();
    if (leader_ == 0) {
      WriteAll(link_.get(), &kInnerLeader, 1);
      agent::RunCommand(plan);
    }
    agent::Report started;
    started.kind = agent::Report::kLeader;
    started.value = leader_;
    agent::Tell(plan.report_fd, started);
  }

  // Reaps; when the command ends, kills the rest before anyone learns of it.
  [[noreturn]] void Watch() {
    agent::Fd report(fcntl(fds_[kJobReport].get(), F_DUPFD_CLOEXEC, 0));
    fds_.clear();
    link_.Reset();
    agent::SetCapabilities(0);
    while (true) {
      int status = 0;
      const pid_t pid = waitpid(-1, &status, 0);
      if (pid < 0 && errno == EINTR) continue;
      if (pid < 0) pause();  // the supervisor ends this process
      if (pid != leader_) continue;
      kill(-1, SIGKILL);
      agent::Tell(report.get(), agent::EndReport(status));
    }
  }

  agent::Fd link_;
  const std::string root_;
  const std::vector<sock_filter>& filter_;
  const bool memory_by_cgroup_, pids_by_cgroup_;
  std::string why_;
  Landlock landlock_;
  std::map<std::string, bool> opened_;
  std::vector<agent::Fd> fds_;
  agent::Start start_;
  agent::InputFiles files_;
  pid_t leader_ = 0;
};

}  // namespace

bool SendJob(int link, const agent::Start& start, const std::string& files,
             const std::vector<int>& fds) {
  agent::Encoder encoder;
  agent::Start copy = start;
  copy.Fields(encoder);
  const std::string payload = encoder.Take();
  uint32_t lengths[2] = {static_cast<uint32_t>(payload.size()),
                         static_cast<uint32_t>(files.size())};
  return SendDescriptors(link, lengths, sizeof(lengths), fds) &&
         WriteAll(link, payload.data(), payload.size()) &&
         WriteAll(link, files.data(), files.size());
}

void RunInner(agent::Fd link, const std::string& root, const std::vector<sock_filter>& filter,
              bool memory_by_cgroup, bool pids_by_cgroup) {
  Inner(std::move(link), root, filter, memory_by_cgroup, pids_by_cgroup).Run();
}

}  // namespace reprise::sandboxd::function
