#include "sandboxd/container/overlay.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <thread>

#include "base/fd.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/image/layer_scan.h"
#include "sandboxd/image/layer_tree.h"

namespace reprise::sandboxd {
namespace {

constexpr size_t kPieceBytes = 1 << 20;
constexpr size_t kXattrBytesMax = 64 << 10;
constexpr size_t kStampBytesMax = 256;
constexpr int kDepthMax = 512;
constexpr int64_t kClockTickNs = 50'000'000;  // longer than the kernel's steps of file times
constexpr std::string_view kOverlayPrefix = "trusted.overlay.";
constexpr char kOpaque[] = "trusted.overlay.opaque";
// On a copied file: which state of which file it was copied from, and the digest of its content.
// Sandboxes cannot set or see attributes of this class.
constexpr char kStamp[] = "trusted.reprise.copied";

int64_t NowNs() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

int64_t ChangedNs(const struct stat& info) {
  return info.st_ctim.tv_sec * 1'000'000'000 + info.st_ctim.tv_nsec;
}

// Changes with whatever is done to the file.
std::string StateOf(const struct stat& info) {
  return fmt::format("{} {} {} ", info.st_ino, ChangedNs(info), info.st_size);
}

class Copier {
 public:
  Copier(std::string from, std::string to, std::string last)
      : from_(std::move(from)), to_(std::move(to)), last_(std::move(last)) {}

  absl::StatusOr<UpperCopy> Run() {
    RETURN_IF_ERROR(
        SyncFileSystem(from_));  // also makes later writes through a mapping change a file's times
    struct statfs file_system {};
    if (statfs(from_.c_str(), &file_system) != 0) return Error("stat file system", from_);
    // There, writes through a mapping are not seen in a file's times.
    if (file_system.f_type == TMPFS_MAGIC) last_.clear();
    struct stat info {};
    if (lstat(from_.c_str(), &info) != 0) return Error("stat", from_);
    device_ = info.st_dev;
    RETURN_IF_ERROR(CopyTree("", 0));
    RETURN_IF_ERROR(TakeAttributes("", info));
    RETURN_IF_ERROR(SyncFileSystem(to_));
    // The next change of any file gets a time of its own.
    const int64_t wait = newest_ns_ + kClockTickNs - NowNs();
    if (wait > 0)
      std::this_thread::sleep_for(std::chrono::nanoseconds(std::min(wait, kClockTickNs)));
    copy_.digest = listing_.Digest();
    return copy_;
  }

 private:
  static absl::Status Error(const char* verb, const std::string& path) {
    return base::ErrnoStatus(errno, fmt::format("{} {}", verb, path));
  }
  static absl::Status SyncFileSystem(const std::string& path) {
    const base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd.valid()) return Error("open", path);
    return syncfs(fd.get()) == 0 ? absl::OkStatus() : Error("sync the file system of", path);
  }

  absl::Status CopyTree(const std::string& inside, int depth) {
    if (depth > kDepthMax) {
      return absl::InvalidArgumentError(
          fmt::format("{}{}: directories are nested too deeply", from_, inside));
    }
    std::error_code error;
    std::vector<std::string> names;
    for (std::filesystem::directory_iterator it(from_ + inside, error), end; !error && it != end;
         it.increment(error)) {
      names.push_back(it->path().filename().string());
    }
    if (error)
      return base::ErrnoStatus(error.value(), fmt::format("read directory {}{}", from_, inside));
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) RETURN_IF_ERROR(CopyEntry(inside + "/" + name, depth));
    return absl::OkStatus();
  }

  absl::Status CopyEntry(const std::string& name, int depth) {
    const std::string source = from_ + name, target = to_ + name;
    struct stat info {};
    if (lstat(source.c_str(), &info) != 0) return Error("stat", source);
    if (++entries_ > kLayerEntriesMax)
      return absl::ResourceExhaustedError(fmt::format("{}: too many files", from_));
    if (S_ISCHR(info.st_mode) && info.st_rdev == makedev(0, 0)) {
      List(name, info, "");
      return mknod(target.c_str(), S_IFCHR, makedev(0, 0)) == 0 ? absl::OkStatus()
                                                                : Error("make", target);
    }
    if (info.st_dev != device_ || S_ISCHR(info.st_mode) || S_ISBLK(info.st_mode) ||
        S_ISSOCK(info.st_mode)) {
      base::LogWarn(fmt::format("snapshot: left out {} (a device, a socket or a mount)", source));
      return absl::OkStatus();
    }
    if (S_ISREG(info.st_mode)) return CopyFile(name, info);
    std::string content;
    if (S_ISLNK(info.st_mode)) {
      std::error_code error;
      content = std::filesystem::read_symlink(source, error).string();
      if (error) return base::ErrnoStatus(error.value(), fmt::format("read link {}", source));
      if (symlink(content.c_str(), target.c_str()) != 0) return Error("make", target);
    } else if (S_ISFIFO(info.st_mode)) {
      if (mkfifo(target.c_str(), 0600) != 0) return Error("make", target);
    } else {
      if (mkdir(target.c_str(), 0700) != 0) return Error("make", target);
      RETURN_IF_ERROR(CopyTree(name, depth + 1));
    }
    List(name, info, content);
    return TakeAttributes(name, info);
  }

  absl::Status CopyFile(const std::string& name, const struct stat& info) {
    const std::string target = to_ + name;
    if (info.st_nlink > 1) {
      auto [first, is_new] = links_.try_emplace(info.st_ino, name);
      if (!is_new) {
        List(name, info, "link " + first->second);
        return link((to_ + first->second).c_str(), target.c_str()) == 0 ? absl::OkStatus()
                                                                        : Error("make", target);
      }
    }
    const auto size = static_cast<uint64_t>(info.st_size);
    copy_.content_bytes += size;
    if (copy_.content_bytes > kLayerBytesMax)
      return absl::ResourceExhaustedError(fmt::format("{}: more than 256 GiB", from_));
    const std::string state = StateOf(info);
    std::string digest = LastDigest(name, state);
    if (!digest.empty() && link((last_ + name).c_str(), target.c_str()) == 0) {
      List(name, info, digest);
      return ListXattrs(name);
    }
    ASSIGN_OR_RETURN(digest, CopyContent(name, size));
    copy_.copied_bytes += size;
    List(name, info, digest);
    RETURN_IF_ERROR(TakeAttributes(name, info));
    if (ChangedNs(info) >= NowNs()) return absl::OkStatus();  // a clock that was set back
    newest_ns_ = std::max(newest_ns_, ChangedNs(info));
    const std::string stamp = state + digest;
    if (lsetxattr(target.c_str(), kStamp, stamp.data(), stamp.size(), 0) != 0 && errno != ENOTSUP)
      return Error("mark", target);
    return absl::OkStatus();
  }

  // "" when the last copy does not have the file in this state.
  std::string LastDigest(const std::string& name, const std::string& state) const {
    if (last_.empty()) return "";
    std::string stamp(kStampBytesMax, '\0');
    const ssize_t size = lgetxattr((last_ + name).c_str(), kStamp, stamp.data(), stamp.size());
    if (size <= 0) return "";
    stamp.resize(static_cast<size_t>(size));
    return stamp.starts_with(state) ? stamp.substr(state.size()) : "";
  }

  // Holes, and blocks of zeros, stay holes.
  absl::StatusOr<std::string> CopyContent(const std::string& name, uint64_t size) {
    const std::string source = from_ + name, target = to_ + name;
    const base::UniqueFd in(open(source.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!in.valid()) return Error("open", source);
    const base::UniqueFd out(
        open(target.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!out.valid()) return Error("make", target);
    const bool cloned = ioctl(out.get(), FICLONE, in.get()) == 0;
    if (!cloned && ftruncate(out.get(), static_cast<off_t>(size)) != 0)
      return Error("resize", target);
    Sha256 hash;
    hash.Update(std::to_string(size));
    for (uint64_t at = 0; at < size;) {
      const off_t data = lseek(in.get(), static_cast<off_t>(at), SEEK_DATA);
      if (data < 0 && errno == ENXIO) break;
      if (data < 0) return Error("seek in", source);
      at = std::max<uint64_t>(at, data - data % kPieceBytes);
      const size_t want = std::min<uint64_t>(size - at, kPieceBytes);
      ASSIGN_OR_RETURN(const std::string_view piece, ReadPiece(in.get(), source, at, want));
      if (piece.find_first_not_of('\0') != std::string_view::npos) {
        hash.Update(fmt::format("@{}", at));
        hash.Update(piece);
        for (size_t done = 0; !cloned && done < want;) {
          const ssize_t count =
              pwrite(out.get(), piece.data() + done, want - done, static_cast<off_t>(at + done));
          if (count < 0 && errno == EINTR) continue;
          if (count < 0) return Error("write", target);
          done += static_cast<size_t>(count);
        }
      }
      at += want;
    }
    return hash.Digest();
  }

  absl::StatusOr<std::string_view> ReadPiece(int fd, const std::string& path, uint64_t at,
                                             size_t want) {
    for (size_t done = 0; done < want;) {
      const ssize_t count =
          pread(fd, piece_.data() + done, want - done, static_cast<off_t>(at + done));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return Error("read", path);
      if (count == 0)
        return absl::AbortedError(
            fmt::format("{} became shorter while it was read: try again", path));
      done += static_cast<size_t>(count);
    }
    return std::string_view(piece_.data(), want);
  }

  // Owner first: it clears capabilities and set-id bits. Times last.
  absl::Status TakeAttributes(const std::string& name, const struct stat& info) {
    const std::string target = to_ + name;
    if (lchown(target.c_str(), info.st_uid, info.st_gid) != 0) return Error("chown", target);
    if (!S_ISLNK(info.st_mode) && chmod(target.c_str(), info.st_mode & 07777) != 0)
      return Error("chmod", target);
    RETURN_IF_ERROR(EachXattr(name, [&](const std::string& key, const std::string& value) {
      ListXattr(key, value);
      return lsetxattr(target.c_str(), key.c_str(), value.data(), value.size(), 0) == 0
                 ? absl::OkStatus()
                 : Error("set an attribute of", target);
    }));
    const timespec times[2] = {info.st_mtim, info.st_mtim};
    if (utimensat(AT_FDCWD, target.c_str(), times, AT_SYMLINK_NOFOLLOW) != 0)
      return Error("set the times of", target);
    return absl::OkStatus();
  }

  absl::Status ListXattrs(const std::string& name) {
    return EachXattr(name, [this](const std::string& key, const std::string& value) {
      ListXattr(key, value);
      return absl::OkStatus();
    });
  }

  // Calls `take` for each attribute that a layer keeps.
  template <typename Take>
  absl::Status EachXattr(const std::string& name, Take take) {
    const std::string source = from_ + name;
    const ssize_t list = llistxattr(source.c_str(), xattrs_.data(), xattrs_.size());
    if (list < 0 && errno == ENOTSUP) return absl::OkStatus();
    if (list < 0) return Error("list extended attributes of", source);
    std::vector<std::string> keys;
    for (size_t at = 0; at < static_cast<size_t>(list); at += keys.back().size() + 1)
      keys.emplace_back(xattrs_.c_str() + at);
    std::sort(keys.begin(), keys.end());
    for (const std::string& key : keys) {
      if (key.starts_with(kOverlayPrefix) &&
          (key.ends_with(".redirect") || key.ends_with(".metacopy"))) {
        return absl::UnimplementedError(
            fmt::format("{}: {} points into layers below: mount overlays with redirect_dir=off "
                        "and metacopy=off",
                        source, key));
      }
      if (key != kOpaque && !KeepsXattr(key)) continue;
      std::string value(kXattrBytesMax, '\0');
      const ssize_t size = lgetxattr(source.c_str(), key.c_str(), value.data(), value.size());
      if (size < 0) return base::ErrnoStatus(errno, fmt::format("read {} of {}", key, source));
      value.resize(static_cast<size_t>(size));
      RETURN_IF_ERROR(take(key, value));
    }
    return absl::OkStatus();
  }

  // What the digest is taken over: each part with its size before it.
  void Part(std::string_view part) {
    listing_.Update(fmt::format("{}:", part.size()));
    listing_.Update(part);
  }
  void List(const std::string& name, const struct stat& info, std::string_view content) {
    Part(name);
    listing_.Update(fmt::format("{:o} {} {} {}.{} ", info.st_mode, info.st_uid, info.st_gid,
                                info.st_mtim.tv_sec, info.st_mtim.tv_nsec));
    Part(content);
  }
  void ListXattr(std::string_view key, std::string_view value) {
    Part(key);
    Part(value);
  }

  const std::string from_, to_;
  std::string last_;
  std::string piece_ = std::string(kPieceBytes, '\0');
  std::string xattrs_ = std::string(kXattrBytesMax, '\0');
  std::map<ino_t, std::string> links_;  // first name of each file that has several
  dev_t device_ = 0;
  uint64_t entries_ = 0;
  int64_t newest_ns_ = 0;  // of the files that were marked
  Sha256 listing_;
  UpperCopy copy_;
};

}  // namespace

absl::StatusOr<OverlayDirs> ParseOverlay(const std::vector<MountSpec>& mounts) {
  if (mounts.size() != 1 || mounts[0].type != "overlay") {
    return absl::FailedPreconditionError(
        "containerd's snapshotter gave something that is not one overlay");
  }
  OverlayDirs dirs;
  for (const std::string& option : mounts[0].options) {
    const size_t equals = option.find('=');
    const std::string key = option.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : option.substr(equals + 1);
    if (key == "upperdir") dirs.upper = value;
    if (key == "workdir") dirs.work = value;
    if (key != "lowerdir") continue;
    for (size_t begin = 0; begin <= value.size();) {
      const size_t end = std::min(value.find(':', begin), value.size());
      dirs.lower.push_back(value.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  if (dirs.upper.empty() || dirs.work.empty() || dirs.lower.empty()) {
    return absl::FailedPreconditionError(
        "containerd's snapshotter gave an overlay without its directories");
  }
  return dirs;
}

absl::StatusOr<UpperCopy> CopyUpper(const std::string& from, const std::string& to,
                                    const std::string& last) {
  return Copier(from, to, last).Run();
}

}  // namespace reprise::sandboxd
