#include "base/secret_file.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>

#include "base/fd.h"
#include "base/status_macros.h"

namespace reprise::base {

absl::StatusOr<std::string> ReadSecretFile(const std::string& path, std::string_view name) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0)
    return ErrnoStatus(errno, fmt::format("cannot read {} file {}", name, path));
  if ((info.st_mode & 077) != 0) {
    return absl::InvalidArgumentError(
        fmt::format("{} file {} can be read by others: chmod 600 it", name, path));
  }
  ASSIGN_OR_RETURN(std::string secret, ReadFile(path, kSecretBytesMax));
  secret.erase(secret.find_last_not_of(" \t\r\n") + 1);
  if (secret.size() < kSecretBytesMin) {
    return absl::InvalidArgumentError(fmt::format("{} in {} has {} bytes: give it at least {}",
                                                  name, path, secret.size(), kSecretBytesMin));
  }
  return secret;
}

}  // namespace reprise::base
