// The QEMU driver: the `microvm` machine without a BIOS of its own, default devices or network; a
// serial port, one read-only disk, a console whose last words are kept. Its process runs as a user
// of its own in an empty network, with QEMU's system-call filter, and dies with its supervisor.
#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "sandboxd/link/agent_link.h"
#include "sandboxd/microvm/qmp.h"
#include "sandboxd/microvm/vmm.h"

namespace reprise::sandboxd::microvm {
namespace {

using base::UniqueFd;
using nlohmann::json;

constexpr size_t kWordsBytesMax = 1024;  // kept of stderr, and of the console
constexpr int64_t kMonitorStartMs = 60'000;
constexpr int64_t kTransferMs = 60'000;  // of a save or a load
constexpr int64_t kTransferPollUs = 1'000;
constexpr rlim_t kOpenFiles = 256;
constexpr char kFilter[] =
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

// The kernel's own tests of its ciphers would take a third of an emulated boot.
constexpr char kKernelArguments[] =
    "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t cryptomgr.notests 8250.nr_uarts=1 "
    "random.trust_cpu=on";

// The end of a stream.
class Tail {
 public:
  UniqueFd fd;
  void Read() {
    char buffer[4096];
    while (fd.valid()) {
      const ssize_t count = read(fd.get(), buffer, sizeof(buffer));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return;
      if (count == 0) return fd.Reset();
      text_.append(buffer, static_cast<size_t>(count));
      if (text_.size() > kWordsBytesMax) text_.erase(0, text_.size() - kWordsBytesMax);
    }
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

struct Pair {
  UniqueFd ours, theirs;
};
absl::StatusOr<Pair> MakePair() {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
    return base::ErrnoStatus(errno, "make a socket pair");
  Pair pair{UniqueFd(fds[0]), UniqueFd(fds[1])};
  if (fcntl(pair.ours.get(), F_SETFL, O_NONBLOCK) != 0)
    return base::ErrnoStatus(errno, "make a socket not block");
  return pair;
}

absl::StatusOr<UniqueFd> OpenFile(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return base::ErrnoStatus(errno, "open " + path);
  return fd;
}

// What execve takes; valid as long as `strings`.
std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& string : strings) pointers.push_back(const_cast<char*>(string.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// The last line that says something, printable.
std::string LastLine(std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  return Printable(text.substr(text.rfind('\n') + 1));
}

class Qemu final : public Vmm {
 public:
  ~Qemu() override {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }

  absl::Status Launch(const VmConfig& config) override {
    ASSIGN_OR_RETURN(Pair port, MakePair());
    ASSIGN_OR_RETURN(Pair monitor, MakePair());
    ASSIGN_OR_RETURN(Pair console, MakePair());
    ASSIGN_OR_RETURN(Pair words, MakePair());
    inherited_ = {port.theirs.get(), monitor.theirs.get(), console.theirs.get()};
    std::vector<UniqueFd> files;
    ASSIGN_OR_RETURN(const std::vector<std::string> arguments,
                     Arguments(config, port, monitor, console, &files));
    const pid_t parent = getpid();
    pid_ = fork();
    if (pid_ < 0) return base::ErrnoStatus(errno, "fork the machine");
    if (pid_ == 0) Become(config, arguments, words.theirs.get(), parent);
    port_ = std::move(port.ours);
    console_.fd = std::move(console.ours);
    words_.fd = std::move(words.ours);
    monitor_ = std::make_unique<Qmp>(std::move(monitor.ours));
    monitor.theirs.Reset(), words.theirs.Reset();
    absl::Status started = monitor_->Start(kMonitorStartMs);
    if (started.ok()) return started;
    Attend();
    return absl::InternalError(
        fmt::format("{} did not start: {} ({})", config.program, started.message(), LastWords()));
  }

  absl::Status Save(int state_fd) override {
    RETURN_IF_ERROR(Pause());
    RETURN_IF_ERROR(KeepMemoryOut());
    RETURN_IF_ERROR(monitor_->Command("getfd", R"({"fdname":"state"})", state_fd).status());
    RETURN_IF_ERROR(monitor_->Command("migrate", R"({"uri":"fd:state"})").status());
    const int64_t deadline = base::MonotonicMicros() + kTransferMs * 1000;
    while (base::MonotonicMicros() < deadline) {
      ASSIGN_OR_RETURN(const std::string text, monitor_->Command("query-migrate"));
      const json answer = json::parse(text, nullptr, false);
      const std::string status =
          answer.is_object() ? answer.value("status", std::string()) : std::string();
      if (status == "completed") return absl::OkStatus();
      if (status == "failed") return absl::InternalError("the machine could not be saved");
      usleep(kTransferPollUs);
    }
    return absl::DeadlineExceededError("the machine was not saved in time");
  }

  absl::Status Load(int state_fd) override {
    RETURN_IF_ERROR(KeepMemoryOut());
    RETURN_IF_ERROR(monitor_->Command("getfd", R"({"fdname":"state"})", state_fd).status());
    RETURN_IF_ERROR(monitor_->Command("migrate-incoming", R"({"uri":"fd:state"})").status());
    const int64_t deadline = base::MonotonicMicros() + kTransferMs * 1000;
    while (base::MonotonicMicros() < deadline) {
      ASSIGN_OR_RETURN(const std::string status, Status());
      if (status != "inmigrate") return absl::OkStatus();
      usleep(kTransferPollUs);
    }
    return absl::DeadlineExceededError("the machine was not loaded in time");
  }

  absl::Status Pause() override { return monitor_->Command("stop").status(); }
  absl::Status Resume() override { return monitor_->Command("cont").status(); }

  UniqueFd TakePort() override { return std::move(port_); }
  pid_t pid() const override { return pid_; }
  void AddPollFds(std::vector<pollfd>* fds) const override {
    for (const int fd : {monitor_->fd(), console_.fd.get(), words_.fd.get()})
      fds->push_back({fd, POLLIN, 0});  // poll passes over -1
  }
  void Attend() override {
    if (monitor_ != nullptr) monitor_->DropEvents();
    console_.Read();
    words_.Read();
  }
  std::string LastWords() const override {
    const std::string words = LastLine(words_.text()), console = LastLine(console_.text());
    if (words.empty()) return console.empty() ? "it said nothing" : console;
    return console.empty() ? words : fmt::format("{}; its console: {}", words, console);
  }

 private:
  // Memory is in a file that both sides map: it is not part of the stream.
  absl::Status KeepMemoryOut() {
    return monitor_
        ->Command("migrate-set-capabilities",
                  R"({"capabilities":[{"capability":"x-ignore-shared","state":true}]})")
        .status();
  }

  absl::StatusOr<std::string> Status() {
    ASSIGN_OR_RETURN(const std::string text, monitor_->Command("query-status"));
    const json answer = json::parse(text, nullptr, false);
    if (!answer.is_object() || !answer.contains("status") || !answer["status"].is_string())
      return absl::DataLossError("the monitor of the machine broke QMP");
    return answer["status"].get<std::string>();
  }

  // `files` keeps what the process opens by its descriptor: paths of the daemon's private
  // directories mean nothing to the user that it runs as.
  absl::StatusOr<std::vector<std::string>> Arguments(const VmConfig& config, const Pair& port,
                                                     const Pair& monitor, const Pair& console,
                                                     std::vector<UniqueFd>* files) {
    auto file = [&](const std::string& path) -> absl::StatusOr<std::string> {
      ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(path));
      inherited_.push_back(fd.get());
      files->push_back(std::move(fd));
      return fmt::format("/proc/self/fd/{}", files->back().get());
    };
    const auto mode = static_cast<Mode>(config.mode);
    const bool kvm = config.accelerator == "kvm";
    ASSIGN_OR_RETURN(const std::string kernel, file(config.kernel));
    ASSIGN_OR_RETURN(const std::string initramfs, file(config.initramfs));
    std::string machine = "microvm,pcie=off,usb=off", command_line = kKernelArguments;
    if (!kvm) {
      command_line += fmt::format(" tsc_early_khz={} tsc=reliable", config.tsc_khz);
    }
    const bool shared = mode == Mode::kTemplate, in_file = shared || mode == Mode::kClone;
    if (in_file) machine += ",memory-backend=ram";
    std::vector<std::string> arguments = {
        config.program, "-M", machine, "-accel", kvm ? "kvm" : "tcg,tb-size=128", "-cpu",
        kvm ? "host" : "max", "-m", fmt::format("{}M", config.memory_mib), "-smp",
        std::to_string(config.cpus), "-nodefaults", "-no-user-config", "-display", "none",
        "-no-reboot", "-sandbox", kFilter, "-kernel", kernel, "-initrd", initramfs, "-append",
        command_line,
        // The three streams.
        "-chardev", fmt::format("socket,id=console,fd={}", console.theirs.get()), "-serial",
        "chardev:console", "-device", "virtio-serial-device", "-chardev",
        fmt::format("socket,id=port,fd={}", port.theirs.get()), "-device",
        fmt::format("virtserialport,chardev=port,name={}", kPortName), "-chardev",
        fmt::format("socket,id=monitor,fd={}", monitor.theirs.get()), "-mon",
        "chardev=monitor,mode=control"};
    if (in_file) {
      inherited_.push_back(kRamFd);
      const std::string backend =
          fmt::format("memory-backend-file,id=ram,mem-path=/proc/self/fd/{},size={}M,share={}",
                      kRamFd, config.memory_mib, shared ? "on" : "off");
      arguments.insert(arguments.end(), {"-object", backend});
    }
    if (!config.image.empty()) {
      ASSIGN_OR_RETURN(const std::string image, file(config.image));
      arguments.insert(
          arguments.end(),
          {"-blockdev",
           fmt::format("driver=file,node-name=image,read-only=on,locking=off,filename={}", image),
           "-device", "virtio-blk-device,drive=image"});
    }
    if (mode == Mode::kClone) arguments.insert(arguments.end(), {"-incoming", "defer"});
    return arguments;
  }

  // In the child (of a process with one thread). Everything else that the supervisor has open stays
  // out: only the lock, the streams and the files go along.
  [[noreturn]] void Become(const VmConfig& config, const std::vector<std::string>& arguments,
                           int words, pid_t parent) {
    auto die = [](const char* what) {
      dprintf(2, "%s: %s\n", what, strerror(errno));
      _exit(127);
    };
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || dup2(null, 0) < 0 || dup2(words, 1) < 0 || dup2(words, 2) < 0) _exit(127);
    for (const int fd : inherited_) fcntl(fd, F_SETFD, 0);
    // Not from a terminal, and nothing of the supervisor's signal mask.
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    setsid();
    const rlimit files{kOpenFiles, kOpenFiles}, core{0, 0};
    setrlimit(RLIMIT_NOFILE, &files);
    setrlimit(RLIMIT_CORE, &core);
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
    if (getppid() != parent) _exit(127);
    const std::vector<std::string> environment = {"PATH=/usr/bin:/bin", "LANG=C"};
    const auto argv = Pointers(arguments), envp = Pointers(environment);
    execve(argv[0], argv.data(), envp.data());
    die("execute it");
    _exit(127);
  }

  // A /dev of its own with what it may open. (/dev/kvm belongs to whom the host likes.)
  static bool MakeDevices(const VmConfig& config) {
    struct stat kvm {};
    if (config.accelerator == "kvm" && stat("/dev/kvm", &kvm) != 0) return false;
    if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=64k") != 0) {
      return false;
    }
    return config.accelerator != "kvm" || (mknod("/dev/kvm", S_IFCHR | 0600, kvm.st_rdev) == 0 &&
                                           chown("/dev/kvm", config.uid, config.uid) == 0);
  }

  pid_t pid_ = -1;
  UniqueFd port_;
  std::unique_ptr<Qmp> monitor_;
  Tail console_, words_;
  std::vector<int> inherited_;
};

}  // namespace

std::unique_ptr<Vmm> MakeQemu() { return std::make_unique<Qemu>(); }

}  // namespace reprise::sandboxd::microvm
