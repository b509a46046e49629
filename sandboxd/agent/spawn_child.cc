#include "sandboxd/agent/spawn_child.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

namespace reprise::sandboxd::agent {
namespace {

constexpr char kCommandOomScore[] = "500";

enum Step : uint32_t { kFork, kDescriptors, kLimits, kUser, kWorkingDir, kExec };

[[noreturn]] void Fail(int fd, Step step) {
  Report report;
  report.kind = Report::kStartFailed;
  report.value = errno;
  report.step = step;
  Tell(fd, report);
  _exit(127);
}

// Moves `fd` to `target`, open across exec.
bool Install(int fd, int target) {
  return fd == target ? fcntl(fd, F_SETFD, 0) == 0 : dup2(fd, target) == target;
}

}  // namespace

void Tell(int report_fd, const Report& report) {
  while (write(report_fd, &report, sizeof(report)) < 0 && errno == EINTR) {
  }
}

void RunCommand(const ChildPlan& plan) {
  const int report = plan.report_fd;
  setsid();
  if (!Install(plan.stdin_fd, 0) || !Install(plan.stdout_fd, 1) || !Install(plan.stderr_fd, 2) ||
      close_range(3, ~0u, CLOSE_RANGE_CLOEXEC) != 0 ||
      (plan.on_terminal && ioctl(0, TIOCSCTTY, 0) != 0)) {
    Fail(report, kDescriptors);
  }
  for (int signal = 1; signal < NSIG; ++signal) {
    struct sigaction reset {};
    reset.sa_handler = SIG_DFL;
    sigaction(signal, &reset, nullptr);  // fails for SIGKILL, SIGSTOP and libc's own
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (plan.harden == nullptr) {
    // The OOM killer takes what the agent starts before the agent. (To lower the agent's own score
    // needs a capability that hosts which are containers themselves lack.)
    const int oom = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (oom < 0 || write(oom, kCommandOomScore, sizeof(kCommandOomScore) - 1) < 0)
      Fail(report, kLimits);
    close(oom);
  }
  for (size_t i = 0; i < plan.limit_count; ++i) {
    if (setrlimit(static_cast<__rlimit_resource>(plan.limits[i].resource), &plan.limits[i].value) !=
        0) {
      Fail(report, kLimits);
    }
  }
  const sched_param lowest{};
  if (plan.best_effort && sched_setscheduler(0, SCHED_IDLE, &lowest) != 0) Fail(report, kLimits);
  umask(022);
  if (plan.harden == nullptr && !BecomeUnprivileged(*plan.identity)) Fail(report, kUser);
  if (chdir(plan.working_dir) != 0) Fail(report, kWorkingDir);
  if (plan.harden != nullptr && !plan.harden(plan.harden_context)) Fail(report, kUser);
  int error = ENOENT;
  for (const char* const* path = plan.candidates; *path != nullptr; ++path) {
    execve(*path, plan.argv, plan.envp);
    if (errno != ENOENT && errno != ENOTDIR) error = errno;
  }
  errno = error;
  Fail(report, kExec);
}

Report EndReport(int status) {
  rusage usage{};
  getrusage(RUSAGE_CHILDREN, &usage);
  Report report;
  report.kind = Report::kEnded;
  report.value = status;
  report.cpu_us = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1'000'000ll +
                  usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
  report.memory_peak_bytes = static_cast<uint64_t>(usage.ru_maxrss) * 1024;
  return report;
}

void RunKeeper(const ChildPlan& plan) {
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  const pid_t leader = fork();
  if (leader < 0) Fail(plan.report_fd, kFork);
  if (leader == 0) RunCommand(plan);

  Report started;
  started.kind = Report::kLeader;
  started.value = leader;
  Tell(plan.report_fd, started);

  const int report_fd = 3;
  if (plan.report_fd != report_fd) dup2(plan.report_fd, report_fd);
  fcntl(report_fd, F_SETFD, FD_CLOEXEC);
  close_range(report_fd + 1, ~0u, 0);
  for (int fd = 0; fd < report_fd; ++fd) close(fd);
  // A user of its own: no command can signal or trace it.
  if (setgroups(0, nullptr) != 0 || setresgid(kKeeperUid, kKeeperUid, kKeeperUid) != 0 ||
      setresuid(kKeeperUid, kKeeperUid, kKeeperUid) != 0 || !SetCapabilities(0)) {
    _exit(126);
  }
  prctl(PR_SET_DUMPABLE, 0);
  while (true) {
    int status = 0;
    const pid_t pid = waitpid(-1, &status, 0);
    if (pid < 0 && errno == EINTR) continue;
    if (pid < 0) _exit(0);
    if (pid != leader) continue;
    Tell(report_fd, EndReport(status));
  }
}

}  // namespace reprise::sandboxd::agent
