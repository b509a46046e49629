#include "sandboxd/image/archive_unpack.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/status_macros.h"
#include "sandboxd/image/archive_reader.h"

namespace reprise::sandboxd {
namespace {

absl::Status CopyData(archive* reader, int fd, uint64_t* total, const std::string& what) {
  const void* data = nullptr;
  size_t size = 0;
  la_int64_t offset = 0;
  while (true) {
    const int code = archive_read_data_block(reader, &data, &size, &offset);
    if (code == ARCHIVE_EOF) return absl::OkStatus();
    if (code != ARCHIVE_OK) return ArchiveError(reader, what);
    *total += size;
    if (*total > kImageArchiveBytesMax || static_cast<uint64_t>(offset) > kImageArchiveBytesMax) {
      return absl::ResourceExhaustedError(fmt::format("{}: unpacks to more than 256 GiB", what));
    }
    const char* at = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t count = pwrite(fd, at, size, offset);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return base::ErrnoStatus(errno, fmt::format("unpack {}", what));
      at += count;
      offset += count;
      size -= static_cast<size_t>(count);
    }
  }
}

}  // namespace

absl::Status UnpackArchive(const std::string& archive_path, const std::string& directory) {
  ASSIGN_OR_RETURN(ArchiveReader reader, OpenTar(archive_path, archive_path));
  uint64_t total = 0;
  for (int entries = 0;; ++entries) {
    archive_entry* entry = nullptr;
    const int code = archive_read_next_header(reader.get(), &entry);
    if (code == ARCHIVE_EOF) return absl::OkStatus();
    if (code != ARCHIVE_OK) return ArchiveError(reader.get(), archive_path);
    if (entries >= kImageArchiveEntriesMax) {
      return absl::ResourceExhaustedError(
          fmt::format("{}: more than {} entries", archive_path, entries));
    }
    const char* raw_name = archive_entry_pathname(entry);
    const std::string name = raw_name != nullptr ? raw_name : "";
    RETURN_IF_ERROR(CheckArchivePath(name, archive_path));
    const std::string target = directory + "/" + name;
    const bool is_link = archive_entry_hardlink(entry) != nullptr;
    if (archive_entry_filetype(entry) == AE_IFDIR && !is_link) {
      RETURN_IF_ERROR(base::MakeDirs(target, 0700));
      continue;
    }
    // Anything else (old archives hold links between equal layers) is left out: what needs it says
    // that it is missing.
    if (archive_entry_filetype(entry) != AE_IFREG || is_link) continue;
    RETURN_IF_ERROR(base::MakeDirs(target.substr(0, target.rfind('/')), 0700));
    base::UniqueFd fd(
        open(target.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd.valid())
      return base::ErrnoStatus(errno, fmt::format("unpack {} from {}", name, archive_path));
    RETURN_IF_ERROR(CopyData(reader.get(), fd.get(), &total, archive_path));
  }
}

}  // namespace reprise::sandboxd
