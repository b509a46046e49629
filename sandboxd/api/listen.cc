#include "sandboxd/api/listen.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/fd.h"
#include "base/status_macros.h"

namespace reprise::sandboxd {
namespace {

constexpr size_t kSocketPathMax = sizeof(sockaddr_un::sun_path) - 1;

absl::StatusOr<bool> SomebodyAnswers(const std::string& path) {
  base::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return base::ErrnoStatus(errno, "cannot make a socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0)
    return true;
  if (errno == ENOENT || errno == ECONNREFUSED) return false;
  if (errno == EAGAIN) return true;  // its backlog is full
  return base::ErrnoStatus(errno, fmt::format("cannot use {} as a socket", path));
}

}  // namespace

UnixListener::UnixListener(std::string path, std::string directory)
    : path_(std::move(path)), directory_(std::move(directory)), private_path_(directory_ + "/s") {}

UnixListener::UnixListener(UnixListener&& other) noexcept
    : path_(std::move(other.path_)),
      directory_(std::exchange(other.directory_, "")),
      private_path_(std::move(other.private_path_)),
      published_(std::exchange(other.published_, false)) {}

UnixListener::~UnixListener() {
  if (published_) ::unlink(path_.c_str());
  if (directory_.empty()) return;
  ::unlink(private_path_.c_str());
  ::rmdir(directory_.c_str());
}

absl::StatusOr<UnixListener> UnixListener::Prepare(const std::string& path) {
  if (path.empty() || path.front() != '/') {
    return absl::InvalidArgumentError(fmt::format("unix:{} is not an absolute path", path));
  }
  std::string parent = path.substr(0, std::max<size_t>(path.rfind('/'), 1));
  std::string pattern = fmt::format("{}/.lXXXXXX", parent);
  if (path.size() > kSocketPathMax || pattern.size() + 2 > kSocketPathMax) {
    return absl::InvalidArgumentError(
        fmt::format("unix:{} is too long for a socket ({} bytes at most): choose a shorter path",
                    path, kSocketPathMax));
  }
  ASSIGN_OR_RETURN(bool taken, SomebodyAnswers(path));
  if (taken)
    return absl::UnavailableError(
        fmt::format("another program listens on unix:{}: stop it first", path));
  RETURN_IF_ERROR(base::MakeDirs(parent, 0700));
  if (::mkdtemp(pattern.data()) == nullptr) {
    return base::ErrnoStatus(errno, fmt::format("cannot make a directory in {}", parent));
  }
  return UnixListener(path, pattern);
}

absl::Status UnixListener::Publish() {
  if (::chmod(private_path_.c_str(), 0600) != 0) {
    return base::ErrnoStatus(errno, fmt::format("cannot set the mode of {}", private_path_));
  }
  if (::rename(private_path_.c_str(), path_.c_str()) != 0) {
    return base::ErrnoStatus(errno, fmt::format("cannot move the socket to {}", path_));
  }
  published_ = true;
  ::rmdir(directory_.c_str());
  return absl::OkStatus();
}

}  // namespace reprise::sandboxd
