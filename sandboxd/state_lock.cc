#include "sandboxd/state_lock.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include <fmt/format.h>

#include "base/status_macros.h"

namespace reprise::sandboxd {

absl::StatusOr<StateLock> StateLock::Take(const std::string& directory) {
  std::string path = fmt::format("{}/lock", directory);
  base::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return base::ErrnoStatus(errno, fmt::format("cannot open {}", path));
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (::fcntl(fd.get(), F_SETLK, &lock) == 0) return StateLock(std::move(fd));
  if (errno != EACCES && errno != EAGAIN)
    return base::ErrnoStatus(errno, fmt::format("cannot lock {}", path));
  struct flock holder {};
  holder.l_type = F_WRLCK;
  holder.l_whence = SEEK_SET;
  std::string who = "another process";
  if (::fcntl(fd.get(), F_GETLK, &holder) == 0 && holder.l_type != F_UNLCK)
    who = fmt::format("process {}", holder.l_pid);
  return absl::FailedPreconditionError(fmt::format(
      "state directory {} is in use by {}: stop it, or choose another --state", directory, who));
}

}  // namespace reprise::sandboxd
