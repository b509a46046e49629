#include "sandboxd/image/image_mounts.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/fd.h"
#include "base/format.h"
#include "base/log.h"
#include "base/status_macros.h"

extern char** environ;

namespace reprise::sandboxd {
namespace {

constexpr long kFuseMagic = 0x65735546;
constexpr long kErofsMagic = 0xE0F5E1E2;

bool IsMounted(const std::string& path, long magic) {
  struct statfs info {};
  return statfs(path.c_str(), &info) == 0 && info.f_type == magic;
}

absl::Status Detach(const std::string& path) {
  // Several when an earlier server died and was replaced.
  while (umount2(path.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0) {
  }
  if (errno == EINVAL || errno == ENOENT) return absl::OkStatus();
  return base::ErrnoStatus(errno, fmt::format("unmount {}", path));
}

// Runs the program and returns when it has ended: it leaves its server behind.
absl::Status RunToEnd(const std::vector<std::string>& words) {
  std::vector<char*> args;
  for (const std::string& word : words) args.push_back(const_cast<char*>(word.c_str()));
  args.push_back(nullptr);
  pid_t pid = -1;
  const int error = posix_spawn(&pid, args[0], nullptr, nullptr, args.data(), environ);
  if (error != 0) return base::ErrnoStatus(error, fmt::format("start {}", words[0]));
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return base::ErrnoStatus(errno, fmt::format("wait for {}", words[0]));
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return absl::UnavailableError(fmt::format("{} did not start", words[0]));
}

}  // namespace

absl::Status ImageMounts::EnsureServer() {
  absl::MutexLock lock(&mutex_);
  return EnsureServerLocked();
}

absl::Status ImageMounts::EnsureServerLocked() {
  struct stat info {};
  if (IsMounted(FilesDir(), kFuseMagic) && stat(FilesDir().c_str(), &info) == 0)
    return absl::OkStatus();
  RETURN_IF_ERROR(DetachAll());
  RETURN_IF_ERROR(base::MakeDirs(FilesDir(), 0700));
  RETURN_IF_ERROR(base::MakeDirs(MountsDir(), 0700));
  const std::string log = options_.catalog.dir + "/imagefs.log";
  std::vector<std::string> words = {options_.server_path,
                                    "--dir",
                                    options_.catalog.dir,
                                    "--mount",
                                    FilesDir(),
                                    "--log",
                                    log,
                                    "--disk-bytes",
                                    std::to_string(options_.catalog.disk_bytes_max),
                                    "--memory-bytes",
                                    std::to_string(options_.catalog.memory_bytes_max)};
  if (!options_.catalog.cold.empty()) {
    words.push_back("--cold");
    words.push_back(options_.catalog.cold);
  }
  absl::Status started = RunToEnd(words);
  if (started.ok()) return started;
  return absl::Status(started.code(), fmt::format("{}; {} says why", started.message(), log));
}

absl::StatusOr<std::string> ImageMounts::ImageFile(const std::string& layer_id) {
  RETURN_IF_ERROR(storage::ParseChunkId(layer_id).status());
  RETURN_IF_ERROR(EnsureServer());
  return FilesDir() + "/" + layer_id;
}

absl::StatusOr<std::vector<std::string>> ImageMounts::Mount(const CatalogImage& image) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(EnsureServerLocked());
  std::vector<std::string> directories;
  for (const std::string& id : image.layers) {
    RETURN_IF_ERROR(storage::ParseChunkId(id).status());
    const std::string target = MountsDir() + "/" + id;
    directories.push_back(target);
    if (IsMounted(target, kErofsMagic)) continue;
    const std::string source = FilesDir() + "/" + id;
    RETURN_IF_ERROR(base::MakeDirs(target, 0700));
    // directio: chunks go to this mount's page cache and not to the served file's too.
    if (mount(source.c_str(), target.c_str(), "erofs", MS_RDONLY | MS_NODEV, "directio") != 0) {
      const int error = errno;
      if (error == ENODEV || error == ENOTBLK) {
        return absl::UnavailableError(
            "this kernel cannot mount EROFS on files: Linux 6.12 or later with EROFS_FS can");
      }
      return base::ErrnoStatus(error, fmt::format("mount layer {} of image {}", id, image.name));
    }
  }
  std::reverse(directories.begin(), directories.end());
  return directories;
}

absl::Status ImageMounts::UnmountUnused(const std::vector<CatalogImage>& images) {
  absl::MutexLock lock(&mutex_);
  std::set<std::string> named;
  for (const CatalogImage& image : images) named.insert(image.layers.begin(), image.layers.end());
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(MountsDir(), error)) {
    if (named.contains(entry.path().filename())) continue;
    // Not forced: an overlay keeps its own reference, so this detaches the name only.
    RETURN_IF_ERROR(Detach(entry.path()));
    rmdir(entry.path().c_str());
  }
  return absl::OkStatus();
}

absl::Status ImageMounts::DetachAll() {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(MountsDir(), error)) {
    RETURN_IF_ERROR(Detach(entry.path()));
    rmdir(entry.path().c_str());
  }
  return Detach(FilesDir());
}

absl::Status ImageMounts::Shutdown() {
  absl::MutexLock lock(&mutex_);
  return DetachAll();
}

}  // namespace reprise::sandboxd
