#include "base/program_dir.h"

#include <unistd.h>

#include <cerrno>
#include <string_view>

#include "base/fd.h"

namespace reprise::base {

absl::StatusOr<std::string> ProgramDir() {
  char path[4096];
  const ssize_t length = ::readlink("/proc/self/exe", path, sizeof(path));
  if (length <= 0 || length == sizeof(path))
    return ErrnoStatus(errno, "cannot read /proc/self/exe");
  const std::string_view program(path, static_cast<size_t>(length));
  return std::string(program.substr(0, program.rfind('/')));
}

}  // namespace reprise::base
