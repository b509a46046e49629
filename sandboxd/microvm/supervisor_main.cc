// reprise-microvm: the supervisor of one microVM. Start order: leave the daemon's session, lock the
// box, read its configuration, then the machine.
//
// Usage: reprise-microvm BOX, started by sandboxd only; see vm_config.h for what it inherits.
#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "base/fd.h"
#include "base/format.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/microvm/supervisor.h"

namespace {

using namespace reprise;  // NOLINT: a program of one file
namespace microvm = sandboxd::microvm;

absl::StatusOr<microvm::VmConfig> ReadConfig() {
  ASSIGN_OR_RETURN(const std::string text,
                   base::ReadFile(microvm::kConfigFile, microvm::kConfigBytesMax));
  microvm::VmConfig config;
  if (!sandboxd::agent::Decode(text, &config))
    return absl::DataLossError("the configuration of the machine is malformed");
  return config;
}

// Two locks: the machine's process inherits the first, so that it tells when both are gone; the
// second tells this process's id to whoever asks the kernel. Who looks whether the box is locked has
// the first for a moment, so it is tried again.
absl::Status LockBox() {
  constexpr int kTries = 1000, kPauseUs = 2000;
  const int fd = open(microvm::kLockFile, O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
  struct flock mine {};
  mine.l_type = F_WRLCK;
  mine.l_whence = SEEK_SET;
  bool locked = false;
  for (int i = 0; fd >= 0 && !locked && i < kTries; ++i) {
    locked = flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (!locked && errno != EWOULDBLOCK && errno != EINTR) break;
    if (!locked) usleep(kPauseUs);
  }
  if (!locked || fcntl(fd, F_SETLK, &mine) != 0)
    return base::ErrnoStatus(errno, "lock the box");
  return absl::OkStatus();
}

absl::Status Run(base::UniqueFd ready) {
  absl::Status locked = LockBox();
  absl::StatusOr<microvm::VmConfig> config = ReadConfig();
  const absl::Status usable = locked.ok() ? config.status() : locked;
  if (!usable.ok()) {
    dprintf(ready.get(), "error %s\n", std::string(usable.message()).c_str());
    return usable;
  }
  auto vmm = static_cast<microvm::Driver>(config->driver) == microvm::Driver::kFirecracker
                 ? microvm::MakeFirecracker()
                 : microvm::MakeQemu();
  return microvm::Supervisor(*std::move(config), std::move(vmm), std::move(ready)).Run();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || fcntl(microvm::kReadyFd, F_GETFD) < 0 || chdir(argv[1]) != 0) {
    fmt::print(stderr, "reprise-microvm: started by sandboxd only\n");
    return 2;
  }
  // The daemon waits for the first process only; the second is nobody's child.
  const pid_t pid = fork();
  if (pid != 0) return pid < 0 ? 1 : 0;
  setsid();
  signal(SIGPIPE, SIG_IGN);
  umask(077);
  clearenv();
  base::UniqueFd ready(microvm::kReadyFd);
  for (const int fd : {microvm::kReadyFd, microvm::kRamFd, microvm::kStateFd})
    fcntl(fd, F_SETFD, FD_CLOEXEC);
  const absl::Status ended = Run(std::move(ready));
  if (!ended.ok())
    base::LogWarn(fmt::format("the machine of {} ended: {}", argv[1], ended.message()));
  return ended.ok() ? 0 : 1;
}
