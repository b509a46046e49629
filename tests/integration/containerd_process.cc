#include "tests/integration/containerd_process.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/status_macros.h"
#include "sandboxd/container/containerd_client.h"

namespace reprise::sandboxd {
namespace {

constexpr int64_t kStartUs = 30'000'000;
constexpr int64_t kTaskEndMs = 10'000;

std::string FindProgram(const std::string& name) {
  for (const char* const directory :
       {"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}) {
    std::string path = fmt::format("{}/{}", directory, name);
    if (access(path.c_str(), X_OK) == 0) return path;
  }
  return "";
}

std::string Config(const std::string& scratch, const std::string& address) {
  return fmt::format(R"(version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{1}"
)",
                     scratch, address);
}

}  // namespace

std::string ContainerdProcess::WhyNot() {
  if (geteuid() != 0) return "containers need root";
  for (const char* const program : {"containerd", "runc", "busybox"}) {
    if (FindProgram(program).empty()) return fmt::format("{} is not installed", program);
  }
  return "";
}

absl::StatusOr<std::unique_ptr<ContainerdProcess>> ContainerdProcess::Start() {
  std::unique_ptr<ContainerdProcess> process(new ContainerdProcess());
  const std::string& scratch = process->scratch_.path();
  // As /run and /var/lib are: a container's root, who is nobody on the host, must reach its root
  // file system.
  if (chmod(scratch.c_str(), 0711) != 0) return base::ErrnoStatus(errno, "chmod " + scratch);
  process->address_ = scratch + "/containerd.sock";
  const std::string config = scratch + "/config.toml", program = FindProgram("containerd");
  RETURN_IF_ERROR(base::WriteFileAtomic(config, Config(scratch, process->address_)));
  const std::string log = scratch + "/log";
  process->pid_ = fork();
  if (process->pid_ < 0) return base::ErrnoStatus(errno, "fork");
  if (process->pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(fd, 1);
    dup2(fd, 2);
    execl(program.c_str(), program.c_str(), "--config", config.c_str(),
          static_cast<char*>(nullptr));
    _exit(127);
  }
  const ContainerdClient client(process->address_, "default");
  const int64_t deadline = base::MonotonicMicros() + kStartUs;
  while (true) {
    if (access(process->address_.c_str(), F_OK) == 0 &&
        ContainerdClient(process->address_, "default").Version().ok()) {
      return process;
    }
    if (waitpid(process->pid_, nullptr, WNOHANG) == process->pid_ ||
        base::MonotonicMicros() > deadline) {
      const std::string words = base::ReadFile(log).value_or("");
      return absl::UnavailableError(
          fmt::format("containerd did not start: {}",
                      words.substr(words.size() - std::min<size_t>(words.size(), 2000))));
    }
    usleep(10'000);
  }
}

ContainerdProcess::~ContainerdProcess() {
  if (pid_ <= 0) return;
  ContainerdClient client(address_, "reprise");
  if (absl::StatusOr<std::vector<ContainerRecord>> records = client.ListContainers();
      records.ok()) {
    for (const ContainerRecord& record : *records) {
      (void)client.KillTask(record.id, SIGKILL, true);
      (void)client.ResumeTask(record.id);
      (void)client.WaitTask(record.id, kTaskEndMs);
      (void)client.DeleteTask(record.id);
    }
  }
  kill(pid_, SIGTERM);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace reprise::sandboxd
