#include "sandboxd/agent/spawn.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>

#include <cstdlib>
#include <map>
#include <string_view>

#include "sandboxd/agent/spawn_child.h"
#include "sandboxd/agent/terminal.h"

namespace reprise::sandboxd::agent {
namespace {

constexpr char kDefaultPath[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

struct Process {
  pid_t parent = 0;
  char state = 0;
};

std::map<pid_t, Process> Processes() {
  std::map<pid_t, Process> processes;
  DIR* proc = opendir("/proc");
  if (proc == nullptr) return processes;
  while (const dirent* entry = readdir(proc)) {
    const pid_t pid = static_cast<pid_t>(std::strtol(entry->d_name, nullptr, 10));
    if (pid <= 0) continue;
    // "pid (name) state parent ...": the name may hold anything, so search from the end.
    const std::string stat = ReadSmallFile("/proc/" + std::to_string(pid) + "/stat", 1024);
    const size_t close = stat.rfind(')');
    if (close == std::string::npos || close + 4 > stat.size()) continue;
    processes[pid] = {static_cast<pid_t>(std::strtol(stat.c_str() + close + 4, nullptr, 10)),
                      stat[close + 2]};
  }
  closedir(proc);
  return processes;
}

// Live processes below `root`, `root` itself excluded.
std::vector<pid_t> Below(pid_t root, const std::map<pid_t, Process>& processes) {
  std::vector<pid_t> found;
  for (const auto& [pid, process] : processes) {
    if (process.state == 'Z' || process.state == 'X') continue;
    // A parent chain is at most as long as there are processes.
    pid_t at = process.parent;
    for (size_t depth = 0; at > 1 && at != root && depth < processes.size(); ++depth) {
      auto next = processes.find(at);
      at = next == processes.end() ? 0 : next->second.parent;
    }
    if (at == root) found.push_back(pid);
  }
  return found;
}

}  // namespace

bool MakePipe(Fd* read_end, Fd* write_end, std::string* why) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) {
    *why = std::string("cannot make a pipe: ") + strerror(errno);
    return false;
  }
  read_end->Reset(fds[0]);
  write_end->Reset(fds[1]);
  return true;
}

void SetNonBlocking(const Fd& fd) {
  fcntl(fd.get(), F_SETFL, fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
}

bool TakeMaster(Fd master, SpawnedCommand* command, std::string* why) {
  command->stdin_fd.Reset(fcntl(master.get(), F_DUPFD_CLOEXEC, 0));
  if (!command->stdin_fd.valid()) {
    *why = std::string("cannot hold a terminal: ") + strerror(errno);
    return false;
  }
  command->stdout_fd = std::move(master);
  return true;
}

// A name with a slash is a path (the command has entered its working directory by then); others are
// looked up.
std::vector<std::string> Candidates(const std::string& program,
                                    const std::vector<std::string>& env) {
  if (program.find('/') != std::string::npos) return {program};
  std::string path = kDefaultPath;
  for (const std::string& variable : env) {
    if (variable.starts_with("PATH=")) path = variable.substr(5);
  }
  std::vector<std::string> candidates;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find(':', begin), path.size());
    const std::string directory = path.substr(begin, end - begin);
    candidates.push_back((directory.empty() ? "." : directory) + "/" + program);
    begin = end + 1;
  }
  return candidates;
}

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& string : strings) pointers.push_back(const_cast<char*>(string.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

bool Spawn(const Start& start, const Identity& identity, const std::vector<std::string>& env,
           SpawnedCommand* command, std::string* why) {
  Fd child_stdin, child_stdout, child_stderr, child_report;
  Terminal terminal;
  if (!MakePipe(&command->report, &child_report, why)) return false;
  if (start.on_terminal()) {
    if (!OpenTerminal(start.pty_rows, start.pty_columns, identity, &terminal, why) ||
        !TakeMaster(std::move(terminal.master), command, why)) {
      return false;
    }
  } else if (!MakePipe(&child_stdin, &command->stdin_fd, why) ||
             !MakePipe(&command->stdout_fd, &child_stdout, why) ||
             !MakePipe(&command->stderr_fd, &child_stderr, why)) {
    return false;
  }
  const std::vector<std::string> candidates = Candidates(start.argv[0], env);
  const auto argv = Pointers(start.argv), envp = Pointers(env), paths = Pointers(candidates);
  std::vector<ChildLimit> limits = {{RLIMIT_CORE, {0, 0}}};
  if (start.cpu_seconds > 0)
    limits.push_back({RLIMIT_CPU, {start.cpu_seconds, start.cpu_seconds + 1}});
  if (start.file_bytes > 0) limits.push_back({RLIMIT_FSIZE, {start.file_bytes, start.file_bytes}});
  if (start.open_files > 0) {
    rlimit now{};
    getrlimit(RLIMIT_NOFILE, &now);
    const rlim_t files = std::min<rlim_t>(start.open_files, now.rlim_max);
    limits.push_back({RLIMIT_NOFILE, {files, files}});
  }
  ChildPlan plan;
  plan.argv = argv.data();
  plan.envp = envp.data();
  plan.candidates = paths.data();
  plan.working_dir = start.working_dir.c_str();
  plan.identity = &identity;
  plan.limits = limits.data();
  plan.limit_count = limits.size();
  plan.best_effort = start.best_effort != 0;
  plan.on_terminal = start.on_terminal();
  plan.stdin_fd = plan.on_terminal ? terminal.slave.get() : child_stdin.get();
  plan.stdout_fd = plan.on_terminal ? terminal.slave.get() : child_stdout.get();
  plan.stderr_fd = plan.on_terminal ? terminal.slave.get() : child_stderr.get();
  plan.report_fd = child_report.get();
  const pid_t keeper = fork();
  if (keeper < 0) {
    *why = std::string("cannot fork: ") + strerror(errno) +
           " (is the sandbox at its limit of processes or memory?)";
    return false;
  }
  if (keeper == 0) RunKeeper(plan);
  command->keeper = keeper;
  for (const Fd* fd :
       {&command->stdin_fd, &command->stdout_fd, &command->stderr_fd, &command->report}) {
    if (fd->valid()) SetNonBlocking(*fd);
  }
  return true;
}

bool KillBelow(pid_t keeper) {
  // Stopped processes do not fork: stop until a look finds nobody new, or give the round up after
  // some looks.
  constexpr int kLooksMax = 8;
  size_t before = 0;
  for (int look = 0; look < kLooksMax; ++look) {
    const std::vector<pid_t> found = Below(keeper, Processes());
    for (const pid_t pid : found) kill(pid, SIGSTOP);
    if (found.size() == before) break;
    before = found.size();
  }
  for (const pid_t pid : Below(keeper, Processes())) kill(pid, SIGKILL);
  return Below(keeper, Processes()).empty();
}

}  // namespace reprise::sandboxd::agent
