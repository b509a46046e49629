#include "sandboxd/image/disk_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string_view>

#include "base/fd.h"

namespace reprise::sandboxd {
namespace {

constexpr size_t kHeadBytes = 1024;
constexpr size_t kSectorBytes = 512;
constexpr std::string_view kQcow2Magic("QFI\xfb", 4);
constexpr std::string_view kBootSignature("\x55\xaa", 2);
constexpr std::string_view kTableSignature = "EFI PART";
// Compressed archives may have any byte anywhere.
constexpr std::string_view kArchiveMagics[] = {std::string_view("\x1f\x8b", 2),
                                               std::string_view("\x28\xb5\x2f\xfd", 4),
                                               std::string_view("\xfd"
                                                                "7zXZ",
                                                                5),
                                               "BZh"};

// The first sectors; less, or nothing, when they are not there.
std::string Head(const std::string& path) {
  const base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat info;
  if (!fd.valid() || fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) return "";
  std::string head(kHeadBytes, '\0');
  const ssize_t count = pread(fd.get(), head.data(), head.size(), 0);
  head.resize(count > 0 ? static_cast<size_t>(count) : 0);
  return head;
}

}  // namespace

bool IsQcow2File(const std::string& path) { return Head(path).starts_with(kQcow2Magic); }

bool IsDiskFile(const std::string& path) {
  const std::string head = Head(path);
  if (head.starts_with(kQcow2Magic)) return true;
  for (const std::string_view magic : kArchiveMagics) {
    if (head.starts_with(magic)) return false;
  }
  return head.size() >= kSectorBytes &&
         (head.substr(kSectorBytes - kBootSignature.size()).starts_with(kBootSignature) ||
          head.substr(kSectorBytes).starts_with(kTableSignature));
}

}  // namespace reprise::sandboxd
