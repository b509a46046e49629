// reprise-agent: init of a container. Start order: arguments, the working directory, the socket,
// then the socket's directory is unmounted and every privilege that is not needed any more is given
// up, before the first command runs.
//
// Usage: reprise-agent --run-dir DIR [--user USER] [--working-dir DIR] [--home DIR]
//                      [--oom-kills FILE]  (FILE as /proc/vmstat: calls that it killed are told)
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <string>

#include "sandboxd/agent/agent.h"
#include "sandboxd/agent/oom_launcher.h"

namespace {

namespace agent = reprise::sandboxd::agent;

constexpr int kBacklog = 128;
constexpr uint64_t Bit(int capability) { return 1ull << capability; }
// To become the user of a call, to signal its processes, and to hold more than any command (so that
// none may trace the agent).
constexpr uint64_t kKeptCapabilities =
    Bit(CAP_SETUID) | Bit(CAP_SETGID) | Bit(CAP_KILL) | Bit(CAP_CHOWN);

[[noreturn]] void Die(const char* what) {
  fprintf(stderr, "reprise-agent: %s: %s\n", what, strerror(errno));
  _exit(1);
}

// Makes `path` with its parents; a directory that is new belongs to `identity`.
void MakeWorkingDir(const std::string& path, const agent::Identity& identity) {
  for (size_t at = 1; at <= path.size(); ++at) {
    if (at < path.size() && path[at] != '/') continue;
    const std::string part = path.substr(0, at);
    if (mkdir(part.c_str(), 0755) != 0) continue;
    if (at == path.size() && chown(part.c_str(), identity.uid, identity.gid) != 0)
      Die("chown the working directory");
  }
}

// As many descriptors as the host lets it have; each command gets its own limit.
void RaiseOpenFiles() {
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
}

agent::Fd Listen(const std::string& run_dir) {
  agent::Fd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = run_dir + "/" + agent::kSocketName;
  if (!listener.valid() || path.size() >= sizeof(address.sun_path)) Die("make the socket");
  memcpy(address.sun_path, path.c_str(), path.size());
  umask(077);
  if (bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
    Die("bind the socket");
  if (listen(listener.get(), kBacklog) != 0) Die("listen");
  // From here on nothing in the container can reach the socket or replace it; the daemon sees the
  // directory itself.
  if (umount2(run_dir.c_str(), MNT_DETACH) != 0) Die("unmount the run directory");
  return listener;
}

}  // namespace

int main(int argc, char** argv) {
  std::string run_dir, oom_kills;
  agent::AgentOptions options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--run-dir") run_dir = argv[i + 1];
    if (name == "--oom-kills") oom_kills = argv[i + 1];
    if (name == "--home") options.home = argv[i + 1];
    if (name == "--user") options.user = argv[i + 1];
    if (name == "--working-dir") options.working_dir = argv[i + 1];
  }
  if (run_dir.empty() || getpid() != 1) {
    fprintf(stderr,
            "reprise-agent: --run-dir is needed, and it runs only as the init of a container\n");
    return 2;
  }
  if (options.working_dir.empty()) options.working_dir = "/";
  prctl(PR_SET_DUMPABLE, 0);
  signal(SIGPIPE, SIG_IGN);
  RaiseOpenFiles();
  agent::Identity identity;
  std::string why;
  // A user that does not exist is told to each call, not here: the sandbox can still be looked
  // into.
  (void)agent::ResolveIdentity(options.user, &identity, &why);
  MakeWorkingDir(options.working_dir, identity);
  sigset_t children;
  sigemptyset(&children);
  sigaddset(&children, SIGCHLD);
  sigprocmask(SIG_BLOCK, &children, nullptr);
  agent::Fd child_signals(signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!child_signals.valid()) Die("signalfd");
  agent::Fd listener = Listen(run_dir);
  for (int capability = 0; capability <= 63; ++capability)
    prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
  if (!agent::SetCapabilities(kKeptCapabilities)) Die("give up capabilities");
  // Standard error is a file of the host: nothing in the container may ever write to it.
  const agent::Fd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null.valid()) Die("open /dev/null");
  for (const int standard : {0, 1, 2}) dup2(null.get(), standard);
  agent::Launcher launcher;
  agent::OomLauncher oom_launcher(oom_kills);
  options.launcher = oom_kills.empty() ? &launcher : &oom_launcher;
  agent::Agent(std::move(options), std::move(listener), std::move(child_signals)).Run();
}
