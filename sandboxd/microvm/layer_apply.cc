#include "sandboxd/microvm/layer_apply.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>

#include "base/fd.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "sandboxd/image/archive_reader.h"

namespace reprise::sandboxd::microvm {
namespace {

namespace fs = std::filesystem;

constexpr char kWhiteout[] = ".wh.";
constexpr char kOpaque[] = ".wh..wh..opq";
constexpr int kFlags = ARCHIVE_EXTRACT_OWNER | ARCHIVE_EXTRACT_PERM | ARCHIVE_EXTRACT_TIME |
                       ARCHIVE_EXTRACT_UNLINK | ARCHIVE_EXTRACT_SECURE_SYMLINKS |
                       ARCHIVE_EXTRACT_SECURE_NODOTDOT;

struct WriteFree {
  void operator()(archive* writer) const { archive_write_free(writer); }
};

// The directory that holds `inside`, reached through no link.
base::UniqueFd OpenParent(const std::string& directory, const fs::path& inside) {
  const base::UniqueFd root(open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  open_how how{};
  how.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
  const std::string parent = inside.parent_path().empty() ? "." : inside.parent_path().string();
  return base::UniqueFd(
      static_cast<int>(syscall(SYS_openat2, root.get(), parent.c_str(), &how, sizeof(how))));
}

// What lies below `parent` (never through a link, as remove_all does not follow them).
void Remove(const base::UniqueFd& parent, const std::string& name) {
  std::error_code ignored;
  fs::remove_all(fmt::format("/proc/self/fd/{}/{}", parent.get(), name), ignored);
}

// A whiteout of a place that is not there takes nothing away.
void ApplyWhiteout(const std::string& directory, const fs::path& inside) {
  const base::UniqueFd parent = OpenParent(directory, inside);
  if (!parent.valid()) return;
  const std::string name = inside.filename().string();
  if (name != kOpaque) return Remove(parent, name.substr(sizeof(kWhiteout) - 1));
  std::error_code ignored;
  std::vector<std::string> names;
  for (const auto& entry :
       fs::directory_iterator(fmt::format("/proc/self/fd/{}", parent.get()), ignored)) {
    names.push_back(entry.path().filename().string());
  }
  for (const std::string& entry : names) Remove(parent, entry);
}

absl::Status CopyData(archive* reader, archive* writer, const std::string& what) {
  while (true) {
    const void* block = nullptr;
    size_t size = 0;
    la_int64_t offset = 0;
    const int read = archive_read_data_block(reader, &block, &size, &offset);
    if (read == ARCHIVE_EOF) return absl::OkStatus();
    if (read < ARCHIVE_WARN) return ArchiveError(reader, what);
    if (archive_write_data_block(writer, block, size, offset) < ARCHIVE_WARN)
      return base::ErrnoStatus(archive_errno(writer), fmt::format("unpack {}", what));
  }
}

}  // namespace

absl::Status ApplyLayer(const std::string& layer_path, const std::string& directory,
                        const std::string& what) {
  ASSIGN_OR_RETURN(const ArchiveReader reader, OpenTar(layer_path, what));
  const std::unique_ptr<archive, WriteFree> writer(archive_write_disk_new());
  archive_write_disk_set_options(writer.get(), kFlags);
  archive_entry* entry = nullptr;
  while (true) {
    const int next = archive_read_next_header(reader.get(), &entry);
    if (next == ARCHIVE_EOF) break;
    if (next < ARCHIVE_WARN) return ArchiveError(reader.get(), what);
    const char* const name = archive_entry_pathname(entry);
    if (name == nullptr) return ArchiveError(reader.get(), what);
    RETURN_IF_ERROR(CheckArchivePath(name, what));
    const fs::path inside = fs::path(name).lexically_normal();
    // "dir/" and "dir" are one name.
    const fs::path leaf = inside.has_filename() ? inside : inside.parent_path();
    if (leaf.filename().string().starts_with(kWhiteout)) {
      ApplyWhiteout(directory, leaf);
      continue;
    }
    archive_entry_set_pathname(entry, fmt::format("{}/{}", directory, leaf.string()).c_str());
    if (const char* const link = archive_entry_hardlink(entry); link != nullptr) {
      RETURN_IF_ERROR(CheckArchivePath(link, what));
      archive_entry_set_hardlink(
          entry,
          fmt::format("{}/{}", directory, fs::path(link).lexically_normal().string()).c_str());
    }
    if (archive_write_header(writer.get(), entry) < ARCHIVE_WARN) {
      return absl::InvalidArgumentError(
          fmt::format("{}: cannot unpack {}: {}", what, name, archive_error_string(writer.get())));
    }
    if (archive_entry_size(entry) > 0 && archive_entry_hardlink(entry) == nullptr)
      RETURN_IF_ERROR(CopyData(reader.get(), writer.get(), what));
    if (archive_write_finish_entry(writer.get()) < ARCHIVE_WARN)
      return base::ErrnoStatus(archive_errno(writer.get()), fmt::format("unpack {}", what));
  }
  if (archive_write_close(writer.get()) < ARCHIVE_WARN)
    return base::ErrnoStatus(archive_errno(writer.get()), fmt::format("unpack {}", what));
  return absl::OkStatus();
}

}  // namespace reprise::sandboxd::microvm
