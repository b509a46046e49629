#include "storage/object_dir.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "base/failpoint.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/status_macros.h"

namespace reprise::storage {
namespace {

// Few directories: ext4 takes milliseconds to make one and holds a million names in it well.
constexpr int kShards = 16;
constexpr size_t kShardDigits = 1;
constexpr size_t kNameBytes = 64;
constexpr char kStaging[] = "/staging";
constexpr char kLockName[] = "/.lock";
constexpr int64_t kTouchEveryUs = 60'000'000;

struct DirClose {
  void operator()(DIR* dir) const { closedir(dir); }
};
using DirHandle = std::unique_ptr<DIR, DirClose>;

absl::Status SyncPath(const std::string& path, int flags) {
  base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | flags));
  if (!fd.valid()) return base::ErrnoStatus(errno, fmt::format("open {}", path));
  if (fsync(fd.get()) != 0) return base::ErrnoStatus(errno, fmt::format("sync {}", path));
  return absl::OkStatus();
}

// With `soon` the disk begins to write at once: the sync of a batch finds most of it done, and its
// first fsync commits the file system's journal for all its files.
absl::Status WriteNew(const std::string& path, std::string_view data, bool soon) {
  base::UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!fd.valid()) return base::ErrnoStatus(errno, fmt::format("create {}", path));
  RETURN_IF_ERROR(base::WriteAll(fd.get(), data, path));
  if (soon) (void)sync_file_range(fd.get(), 0, 0, SYNC_FILE_RANGE_WRITE);
  return absl::OkStatus();
}

int64_t MicrosOf(const timespec& time) { return time.tv_sec * 1'000'000 + time.tv_nsec / 1000; }

int64_t NowMicros() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return MicrosOf(now);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ObjectDir>> ObjectDir::Open(const std::string& path) {
  std::unique_ptr<ObjectDir> dir(new ObjectDir(path));
  RETURN_IF_ERROR(base::MakeDirs(path + kStaging));
  for (int shard = 0; shard < kShards; ++shard) {
    const std::string shard_path = fmt::format("{}/{:x}", path, shard);
    if (mkdir(shard_path.c_str(), 0755) != 0 && errno != EEXIST)
      return base::ErrnoStatus(errno, fmt::format("make {}", shard_path));
  }
  RETURN_IF_ERROR(dir->RemoveStaleBatches());
  return dir;
}

std::string ObjectDir::PathOf(const std::string& name) const {
  return fmt::format("{}/{}/{}", path_, std::string_view(name).substr(0, kShardDigits), name);
}

// A batch holds its lock as long as its process lives.
absl::Status ObjectDir::RemoveStaleBatches() const {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(path_ + kStaging, error)) {
    const std::string lock_path = entry.path().string() + kLockName;
    base::UniqueFd lock(open(lock_path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    if (lock.valid() && flock(lock.get(), LOCK_EX | LOCK_NB) != 0) continue;
    std::error_code ignored;
    // Without a lock file it is being made or is half removed: only an empty one may go then.
    if (lock.valid()) {
      std::filesystem::remove_all(entry.path(), ignored);
    } else {
      rmdir(entry.path().c_str());
    }
  }
  return error ? base::ErrnoStatus(error.value(), fmt::format("list {}{}", path_, kStaging))
               : absl::OkStatus();
}

absl::StatusOr<std::string> ObjectDir::Read(const std::string& name, size_t bytes_max,
                                            bool touch) const {
  const std::string path = PathOf(name);
  base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return base::ErrnoStatus(errno, fmt::format("open {}", path));
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) return base::ErrnoStatus(errno, fmt::format("stat {}", path));
  if (static_cast<uint64_t>(info.st_size) > bytes_max) {
    return absl::DataLossError(
        fmt::format("{} has {} bytes, more than any object", path, info.st_size));
  }
  std::string object(static_cast<size_t>(info.st_size), '\0');
  for (size_t done = 0; done < object.size();) {
    const ssize_t count =
        pread(fd.get(), object.data() + done, object.size() - done, static_cast<off_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return base::ErrnoStatus(errno, fmt::format("read {}", path));
    if (count == 0) return absl::DataLossError(fmt::format("{} became shorter", path));
    done += static_cast<size_t>(count);
  }
  // Best effort: the order of eviction suffers without it, nothing else.
  if (touch && NowMicros() - MicrosOf(info.st_mtim) > kTouchEveryUs)
    (void)futimens(fd.get(), nullptr);
  return object;
}

bool ObjectDir::Has(const std::string& name) const {
  struct stat info {};
  return stat(PathOf(name).c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

absl::Status ObjectDir::PutCopy(const std::string& name, std::string_view object) {
  const std::string temporary = fmt::format("{}.{}", PathOf(name), base::RandomHex(8));
  absl::Status status = WriteNew(temporary, object, /*soon=*/false);
  if (status.ok() && rename(temporary.c_str(), PathOf(name).c_str()) != 0)
    status = base::ErrnoStatus(errno, fmt::format("rename {}", temporary));
  if (!status.ok()) unlink(temporary.c_str());
  return status;
}

absl::StatusOr<bool> ObjectDir::Remove(const std::string& name) {
  if (unlink(PathOf(name).c_str()) == 0) return true;
  if (errno == ENOENT) return false;
  return base::ErrnoStatus(errno, fmt::format("remove {}", PathOf(name)));
}

absl::Status ObjectDir::ForEach(const std::function<void(const Info&)>& visit) const {
  for (int shard = 0; shard < kShards; ++shard) {
    const std::string shard_path = fmt::format("{}/{:x}", path_, shard);
    DirHandle dir(opendir(shard_path.c_str()));
    if (dir == nullptr) return base::ErrnoStatus(errno, fmt::format("list {}", shard_path));
    while (const dirent* entry = readdir(dir.get())) {
      struct stat info {};
      if (entry->d_name[0] == '.' ||
          fstatat(dirfd(dir.get()), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0) {
        continue;
      }
      const std::string name = entry->d_name;
      if (name.size() == kNameBytes) {
        visit({name, static_cast<uint64_t>(info.st_size), MicrosOf(info.st_mtim)});
      } else if (NowMicros() - MicrosOf(info.st_mtim) > 60 * kTouchEveryUs) {
        unlinkat(dirfd(dir.get()), entry->d_name, 0);  // a copy whose writer was killed
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ObjectDir::Batch>> ObjectDir::Begin() {
  const std::string staging = fmt::format("{}{}/{}", path_, kStaging, base::RandomHex(12));
  if (mkdir(staging.c_str(), 0755) != 0)
    return base::ErrnoStatus(errno, fmt::format("make {}", staging));
  const std::string lock_path = staging + kLockName;
  base::UniqueFd lock(open(lock_path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!lock.valid() || flock(lock.get(), LOCK_EX) != 0)
    return base::ErrnoStatus(errno, fmt::format("lock {}", lock_path));
  return std::unique_ptr<Batch>(new Batch(this, staging, std::move(lock)));
}

ObjectDir::Batch::~Batch() {
  std::error_code error;
  std::filesystem::remove_all(staging_, error);
}

bool ObjectDir::Batch::Has(const std::string& name) {
  if (!dir_->Has(name)) return false;
  // Another batch may have renamed it a moment ago: its directory is synced with this batch's.
  absl::MutexLock lock(&mutex_);
  shards_.insert(name.substr(0, kShardDigits));
  return true;
}

absl::StatusOr<bool> ObjectDir::Batch::Put(const std::string& name, std::string_view object) {
  if (Has(name)) return false;
  absl::Status written = WriteNew(staging_ + "/" + name, object, /*soon=*/true);
  if (absl::IsAlreadyExists(written)) return false;
  RETURN_IF_ERROR(written);
  absl::MutexLock lock(&mutex_);
  names_.push_back(name);
  shards_.insert(name.substr(0, kShardDigits));
  return true;
}

absl::Status ObjectDir::Batch::Commit() {
  absl::MutexLock lock(&mutex_);
  for (const std::string& name : names_) RETURN_IF_ERROR(SyncPath(staging_ + "/" + name, 0));
  base::FailPoint("objects.synced");
  for (const std::string& name : names_) {
    if (rename((staging_ + "/" + name).c_str(), dir_->PathOf(name).c_str()) != 0)
      return base::ErrnoStatus(errno, fmt::format("rename {}/{}", staging_, name));
    base::FailPoint("objects.renamed");
  }
  names_.clear();
  for (const std::string& shard : shards_) {
    RETURN_IF_ERROR(SyncPath(dir_->path_ + "/" + shard, O_DIRECTORY));
  }
  return absl::OkStatus();
}

}  // namespace reprise::storage
