#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/fd.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/image/layer_build.h"
#include "sandboxd/image/layer_scan.h"

namespace reprise::sandboxd {
namespace {

constexpr size_t kReadBytes = 1 << 20;
constexpr size_t kXattrBytesMax = 64 << 10;
constexpr int kDepthMax = 512;
constexpr std::string_view kOverlayPrefix = "trusted.overlay.";

class DirectoryBuilder {
 public:
  DirectoryBuilder(std::string root, DirectoryKind kind, ChunkPacker* packer, LayerTree* tree)
      : root_(std::move(root)),
        kind_(kind),
        packer_(packer),
        tree_(tree),
        buffer_(kReadBytes, '\0') {}

  absl::Status Run() {
    struct stat info {};
    if (stat(root_.c_str(), &info) != 0)
      return base::ErrnoStatus(errno, fmt::format("stat {}", root_));
    if (!S_ISDIR(info.st_mode))
      return absl::InvalidArgumentError(fmt::format("{} is not a directory", root_));
    device_ = info.st_dev;
    ASSIGN_OR_RETURN(LayerNode node, Attributes(root_ + "/.", info));
    RETURN_IF_ERROR(tree_->Add("", std::move(node)).status());
    return AddTree("", 0);
  }

 private:
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
      RETURN_IF_ERROR(AddEntry(inside.empty() ? name : inside + "/" + name, depth));
    }
    return absl::OkStatus();
  }

  absl::Status AddEntry(const std::string& name, int depth) {
    const std::string path = root_ + "/" + name;
    struct stat info {};
    if (lstat(path.c_str(), &info) != 0)
      return base::ErrnoStatus(errno, fmt::format("stat {}", path));
    if (++entries_ > kLayerEntriesMax)
      return absl::ResourceExhaustedError(fmt::format("{}: too many files", root_));
    if (kind_ == DirectoryKind::kUpper && S_ISCHR(info.st_mode) && info.st_rdev == makedev(0, 0))
      return tree_->Whiteout(name);
    const bool kept = S_ISREG(info.st_mode) || S_ISDIR(info.st_mode) || S_ISLNK(info.st_mode) ||
                      S_ISFIFO(info.st_mode);
    if (!kept || info.st_dev != device_) {
      base::LogWarn(
          fmt::format("import {}: skipped {} ({})", root_, path,
                      kept ? "another file system is mounted there" : "a device or socket"));
      return absl::OkStatus();
    }
    if (S_ISREG(info.st_mode) && info.st_nlink > 1) {
      auto [first, is_new] = links_.try_emplace(info.st_ino, name);
      if (!is_new) return tree_->Link(name, first->second);
    }
    ASSIGN_OR_RETURN(LayerNode node, Attributes(path, info));
    if (S_ISREG(info.st_mode)) RETURN_IF_ERROR(TakeContent(path, info, &node));
    RETURN_IF_ERROR(tree_->Add(name, std::move(node)).status());
    return S_ISDIR(info.st_mode) ? AddTree(name, depth + 1) : absl::OkStatus();
  }

  absl::StatusOr<LayerNode> Attributes(const std::string& path, const struct stat& info) {
    LayerNode node;
    node.mode = info.st_mode;
    node.uid = info.st_uid;
    node.gid = info.st_gid;
    node.mtime_s = info.st_mtim.tv_sec;
    node.mtime_ns = static_cast<uint32_t>(info.st_mtim.tv_nsec);
    if (S_ISLNK(info.st_mode)) {
      std::error_code error;
      node.target = std::filesystem::read_symlink(path, error).string();
      if (error) return base::ErrnoStatus(error.value(), fmt::format("read link {}", path));
      return node;
    }
    RETURN_IF_ERROR(TakeXattrs(path, &node));
    return node;
  }

  absl::Status TakeXattrs(const std::string& path, LayerNode* node) {
    std::string& list = xattr_names_;
    const ssize_t list_size = llistxattr(path.c_str(), list.data(), list.size());
    if (list_size < 0 && errno == ENOTSUP) return absl::OkStatus();
    if (list_size < 0)
      return base::ErrnoStatus(errno, fmt::format("list extended attributes of {}", path));
    for (size_t at = 0; at < static_cast<size_t>(list_size);) {
      const std::string name = list.c_str() + at;
      at += name.size() + 1;
      const bool overlay = kind_ == DirectoryKind::kUpper && name.starts_with(kOverlayPrefix);
      if (!overlay && !KeepsXattr(name)) continue;
      std::string value(kXattrBytesMax, '\0');
      const ssize_t size = lgetxattr(path.c_str(), name.c_str(), value.data(), value.size());
      if (size < 0) return base::ErrnoStatus(errno, fmt::format("read {} of {}", name, path));
      value.resize(static_cast<size_t>(size));
      if (!overlay) {
        node->xattrs.emplace_back(name, std::move(value));
      } else if (name.ends_with(".opaque")) {
        node->opaque = value == "y";
      } else if (name.ends_with(".redirect") || name.ends_with(".metacopy")) {
        return absl::UnimplementedError(
            fmt::format("{}: {} points into layers below: mount overlays with redirect_dir=off "
                        "and metacopy=off",
                        path, name));
      }
    }
    std::sort(node->xattrs.begin(), node->xattrs.end());
    return absl::OkStatus();
  }

  absl::Status TakeContent(const std::string& path, const struct stat& info, LayerNode* node) {
    base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!fd.valid()) return base::ErrnoStatus(errno, fmt::format("open {}", path));
    node->size = static_cast<uint64_t>(info.st_size);
    bytes_ += node->size;
    if (bytes_ > kLayerBytesMax)
      return absl::ResourceExhaustedError(fmt::format("{}: more than 256 GiB", root_));
    ASSIGN_OR_RETURN(node->data_offset, packer_->Begin(node->size));
    // Only files with fewer blocks than bytes can have holes worth a system call each.
    const bool sparse = static_cast<uint64_t>(info.st_blocks) * 512 < node->size;
    uint64_t at = 0;
    while (at < node->size) {
      uint64_t end = node->size;
      if (sparse) {
        RETURN_IF_ERROR(NextData(fd.get(), path, node->size, &at, &end));
      }
      while (at < end) {
        const size_t want = std::min<uint64_t>(end - at, buffer_.size());
        const ssize_t count = pread(fd.get(), buffer_.data(), want, static_cast<off_t>(at));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return base::ErrnoStatus(errno, fmt::format("read {}", path));
        if (count == 0) {
          return absl::AbortedError(
              fmt::format("{} became shorter while it was read: try again", path));
        }
        RETURN_IF_ERROR(packer_->Append({buffer_.data(), static_cast<size_t>(count)}));
        at += static_cast<uint64_t>(count);
      }
    }
    return packer_->End();
  }

  // Skips a hole at `at`, and sets `end` to where the data after it ends.
  absl::Status NextData(int fd, const std::string& path, uint64_t size, uint64_t* at,
                        uint64_t* end) {
    const off_t data = lseek(fd, static_cast<off_t>(*at), SEEK_DATA);
    if (data < 0 && errno != ENXIO) return base::ErrnoStatus(errno, fmt::format("seek {}", path));
    const uint64_t from = data < 0 ? size : std::min<uint64_t>(data, size);
    RETURN_IF_ERROR(packer_->Skip(from - *at));
    *at = from;
    const off_t hole = from < size ? lseek(fd, static_cast<off_t>(from), SEEK_HOLE) : -1;
    *end = hole < 0 ? size : std::min<uint64_t>(hole, size);
    return absl::OkStatus();
  }

  const std::string root_;
  const DirectoryKind kind_;
  ChunkPacker* const packer_;
  LayerTree* const tree_;
  std::string buffer_;
  std::string xattr_names_ = std::string(kXattrBytesMax, '\0');
  std::map<ino_t, std::string> links_;  // first name of each file that has several
  dev_t device_ = 0;
  uint64_t entries_ = 0, bytes_ = 0;
};

}  // namespace

absl::Status BuildFromDirectory(const std::string& path, DirectoryKind kind, ChunkPacker* packer,
                                LayerTree* tree) {
  return DirectoryBuilder(path, kind, packer, tree).Run();
}

}  // namespace reprise::sandboxd
