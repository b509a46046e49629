// Makes an image of one layer from a directory: a tar whose entries are sorted and carry numeric
// owners, modes, modification times in whole seconds, extended attributes and hard links; the same
// tree gives the same bytes. Devices and sockets are skipped with a log line, and so is what
// another file system mounts inside.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/fd.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/image/archive_reader.h"
#include "sandboxd/image/image_source.h"

namespace reprise::sandboxd {
namespace {

constexpr size_t kReadBytes = 1 << 20;
constexpr size_t kXattrBytesMax = 64 << 10;
constexpr int kDepthMax = 512;
constexpr uint64_t kEntriesMax = 10'000'000;

struct EntryFree {
  void operator()(archive_entry* entry) const { archive_entry_free(entry); }
};
using Entry = std::unique_ptr<archive_entry, EntryFree>;
struct WriteFree {
  void operator()(archive* writer) const { archive_write_free(writer); }
};

class TarWriter {
 public:
  TarWriter(std::string root, std::string target)
      : root_(std::move(root)), target_(std::move(target)) {}

  absl::StatusOr<BlobRef> Write() {
    file_.Reset(open(target_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!file_.valid()) return base::ErrnoStatus(errno, fmt::format("create {}", target_));
    writer_.reset(archive_write_new());
    archive_write_set_format_pax_restricted(writer_.get());
    archive_write_set_bytes_in_last_block(writer_.get(), 1);
    if (archive_write_open(writer_.get(), this, nullptr, &TarWriter::Take, nullptr) != ARCHIVE_OK)
      return Failed();
    struct stat info;
    if (lstat(root_.c_str(), &info) != 0)
      return base::ErrnoStatus(errno, fmt::format("stat {}", root_));
    device_ = info.st_dev;
    RETURN_IF_ERROR(AddTree("", 0));
    if (archive_write_close(writer_.get()) != ARCHIVE_OK) return Failed();
    return BlobRef{kTarLayerMediaType, hash_.Digest(), size_};
  }

 private:
  static la_ssize_t Take(archive*, void* self, const void* data, size_t size) {
    auto* writer = static_cast<TarWriter*>(self);
    const std::string_view piece(static_cast<const char*>(data), size);
    writer->output_ = base::WriteAll(writer->file_.get(), piece, writer->target_);
    if (!writer->output_.ok()) return -1;
    writer->hash_.Update(piece);
    writer->size_ += static_cast<int64_t>(size);
    return static_cast<la_ssize_t>(size);
  }

  absl::Status Failed() {
    if (!output_.ok()) return output_;
    return absl::InternalError(
        fmt::format("write {}: {}", target_, archive_error_string(writer_.get())));
  }

  // Adds what lies in the directory `inside` (relative to the root, "" for itself), in byte order
  // of the names.
  absl::Status AddTree(const std::string& inside, int depth) {
    if (depth > kDepthMax) {
      return absl::InvalidArgumentError(
          fmt::format("{}/{}: directories are nested too deeply", root_, inside));
    }
    std::error_code error;
    std::vector<std::string> names;
    for (std::filesystem::directory_iterator it(root_ + "/" + inside, error), end;
         !error && it != end; it.increment(error)) {
      names.push_back(it->path().filename().string());
    }
    if (error)
      return base::ErrnoStatus(error.value(), fmt::format("read directory {}/{}", root_, inside));
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) {
      if (name.starts_with(".wh.")) {
        return absl::InvalidArgumentError(fmt::format(
            "{}/{}/{}: names that begin with .wh. mean deletions in a layer", root_, inside, name));
      }
      RETURN_IF_ERROR(AddEntry(inside.empty() ? name : inside + "/" + name, depth));
    }
    return absl::OkStatus();
  }

  absl::Status AddEntry(const std::string& name, int depth) {
    const std::string path = root_ + "/" + name;
    struct stat info;
    if (lstat(path.c_str(), &info) != 0)
      return base::ErrnoStatus(errno, fmt::format("stat {}", path));
    if (++entries_ > kEntriesMax)
      return absl::ResourceExhaustedError(fmt::format("{}: too many files", root_));
    const bool kept = S_ISREG(info.st_mode) || S_ISDIR(info.st_mode) || S_ISLNK(info.st_mode) ||
                      S_ISFIFO(info.st_mode);
    if (!kept || info.st_dev != device_) {
      base::LogWarn(
          fmt::format("import {}: skipped {} ({})", root_, path,
                      kept ? "another file system is mounted there" : "a device or socket"));
      return absl::OkStatus();
    }
    Entry entry(archive_entry_new());
    archive_entry_set_pathname(entry.get(), name.c_str());
    archive_entry_set_mode(entry.get(), info.st_mode);
    archive_entry_set_uid(entry.get(), info.st_uid);
    archive_entry_set_gid(entry.get(), info.st_gid);
    archive_entry_set_mtime(entry.get(), info.st_mtim.tv_sec, 0);
    archive_entry_set_size(entry.get(), S_ISREG(info.st_mode) ? info.st_size : 0);
    if (S_ISLNK(info.st_mode)) {
      std::error_code error;
      archive_entry_set_symlink(entry.get(), std::filesystem::read_symlink(path, error).c_str());
      if (error) return base::ErrnoStatus(error.value(), fmt::format("read link {}", path));
    }
    bool has_data = S_ISREG(info.st_mode);
    if (has_data && info.st_nlink > 1) {
      auto [first, is_new] = links_.try_emplace(info.st_ino, name);
      if (!is_new) {
        archive_entry_set_hardlink(entry.get(), first->second.c_str());
        archive_entry_set_size(entry.get(), 0);
        has_data = false;
      }
    }
    if (!S_ISLNK(info.st_mode)) RETURN_IF_ERROR(AddXattrs(path, entry.get()));
    if (archive_write_header(writer_.get(), entry.get()) != ARCHIVE_OK) return Failed();
    if (has_data) RETURN_IF_ERROR(AddData(path, info.st_size));
    return S_ISDIR(info.st_mode) ? AddTree(name, depth + 1) : absl::OkStatus();
  }

  // File capabilities and user attributes; the others belong to the host's file systems.
  absl::Status AddXattrs(const std::string& path, archive_entry* entry) {
    std::string list(kXattrBytesMax, '\0');
    const ssize_t list_size = llistxattr(path.c_str(), list.data(), list.size());
    if (list_size < 0 && errno == ENOTSUP) return absl::OkStatus();
    if (list_size < 0)
      return base::ErrnoStatus(errno, fmt::format("list extended attributes of {}", path));
    std::vector<std::string> names;
    for (size_t at = 0; at < static_cast<size_t>(list_size); at += names.back().size() + 1) {
      names.emplace_back(list.c_str() + at);
    }
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) {
      if (!name.starts_with("user.") && name != "security.capability") continue;
      std::string value(kXattrBytesMax, '\0');
      const ssize_t size = lgetxattr(path.c_str(), name.c_str(), value.data(), value.size());
      if (size < 0) return base::ErrnoStatus(errno, fmt::format("read {} of {}", name, path));
      archive_entry_xattr_add_entry(entry, name.c_str(), value.data(), static_cast<size_t>(size));
    }
    return absl::OkStatus();
  }

  absl::Status AddData(const std::string& path, int64_t size) {
    base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!fd.valid()) return base::ErrnoStatus(errno, fmt::format("open {}", path));
    std::string buffer(std::min<int64_t>(size, kReadBytes), '\0');
    int64_t left = size;
    while (left > 0) {
      const ssize_t count = read(fd.get(), buffer.data(), std::min<int64_t>(left, kReadBytes));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return base::ErrnoStatus(errno, fmt::format("read {}", path));
      if (count == 0)
        return absl::AbortedError(
            fmt::format("{} became shorter while it was read: try again", path));
      if (archive_write_data(writer_.get(), buffer.data(), static_cast<size_t>(count)) != count)
        return Failed();
      left -= count;
    }
    return absl::OkStatus();
  }

  const std::string root_;
  const std::string target_;
  base::UniqueFd file_;
  std::unique_ptr<archive, WriteFree> writer_;
  Sha256 hash_;
  absl::Status output_;
  int64_t size_ = 0;
  dev_t device_ = 0;
  uint64_t entries_ = 0;
  std::map<ino_t, std::string> links_;  // inode -> first name, files with several names only
};

}  // namespace

absl::StatusOr<ImageBundle> OpenRootDirectory(const std::string& directory,
                                              const std::string& scratch) {
  const std::string path = scratch + "/layer.tar";
  ASSIGN_OR_RETURN(BlobRef layer, TarWriter(directory, path).Write());
  ImageBundle bundle;
  bundle.config.diff_ids = {layer.digest};
  bundle.config_json = MakeConfig(bundle.config);
  bundle.config_blob = {kConfigMediaType, Sha256Digest(bundle.config_json),
                        static_cast<int64_t>(bundle.config_json.size())};
  bundle.manifest_json = MakeManifest({bundle.config_blob, {layer}});
  bundle.manifest = {kManifestMediaType, Sha256Digest(bundle.manifest_json),
                     static_cast<int64_t>(bundle.manifest_json.size())};
  bundle.layers.push_back({std::move(layer), path});
  return bundle;
}

}  // namespace reprise::sandboxd
