#include "sandboxd/microvm/disk_store.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "base/fd.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/image/blob.h"
#include "sandboxd/image/image_name.h"
#include "sandboxd/image/image_source.h"
#include "sandboxd/microvm/layer_apply.h"

namespace reprise::sandboxd::microvm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kMkfs[] = "/usr/bin/mkfs.erofs";
constexpr char kBusybox[] = "/bin/busybox";
constexpr uint64_t kBusyboxBytesMax = 64 << 20;
constexpr uint64_t kRecordBytesMax = 16 << 20;
constexpr char kDefaultVersion[] = "1";  // of how the default root is made

absl::Status RunMkfs(const std::string& target, const std::string& root) {
  // Times of the files themselves would make equal images differ; their content is what counts.
  const char* const argv[] = {kMkfs, "-T0", "--quiet", target.c_str(), root.c_str(), nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  pid_t pid = -1;
  const int error =
      posix_spawn(&pid, kMkfs, &actions, nullptr, const_cast<char* const*>(argv), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return base::ErrnoStatus(
        error, fmt::format("start {} (install it: 'apt-get install erofs-utils')", kMkfs));
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return absl::InternalError(fmt::format("{} failed for {} (is the disk full?)", kMkfs, target));
}

// Programs, the accounts that every image has, and the places that programs write to.
absl::Status MakeBusyboxRoot(const std::string& root) {
  for (const char* const part :
       {"bin", "etc", "root", "tmp", "work", "var/tmp", "proc", "sys", "dev"}) {
    RETURN_IF_ERROR(base::MakeDirs(fmt::format("{}/{}", root, part), 0755));
  }
  for (const char* const part : {"tmp", "work", "var/tmp"}) {
    const std::string path = fmt::format("{}/{}", root, part);
    if (chmod(path.c_str(), 01777) != 0) return base::ErrnoStatus(errno, "chmod " + path);
  }
  std::error_code error;
  fs::copy_file(kBusybox, root + "/bin/busybox", error);
  if (error) return base::ErrnoStatus(error.value(), fmt::format("copy {}", kBusybox));
  FILE* const applets = popen("/bin/busybox --list", "r");
  if (applets == nullptr) return base::ErrnoStatus(errno, "list busybox's applets");
  char line[128];
  while (std::fgets(line, sizeof(line), applets) != nullptr) {
    std::string name(line);
    while (!name.empty() && name.back() == '\n') name.pop_back();
    if (name != "busybox" && !name.empty())
      fs::create_symlink("busybox", fmt::format("{}/bin/{}", root, name), error);
  }
  pclose(applets);
  for (const auto& [name, text] : std::initializer_list<std::pair<const char*, const char*>>{
           {"passwd",
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n"
            "nobody:x:65534:65534:nobody:/:/bin/false\n"},
           {"group", "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n"},
           {"hosts", "127.0.0.1 localhost\n"},
           {"machine-id", "\n"}}) {
    const std::string path = fmt::format("{}/etc/{}", root, name);
    RETURN_IF_ERROR(base::WriteFileAtomic(path, text));
    if (chmod(path.c_str(), 0644) != 0) return base::ErrnoStatus(errno, "chmod " + path);
  }
  return absl::OkStatus();
}

}  // namespace

DiskStore::DiskStore(const std::string& dir)
    : dir_(dir), records_(dir, "image", "import its image again", kRecordBytesMax) {}

absl::StatusOr<std::unique_ptr<DiskStore>> DiskStore::Open(const std::string& dir) {
  for (const char* const part : {"names", "disks"})
    RETURN_IF_ERROR(base::MakeDirs(fmt::format("{}/{}", dir, part), 0700));
  std::error_code error;
  const fs::path real = fs::canonical(dir, error);
  if (error) return base::ErrnoStatus(error.value(), "resolve " + dir);
  std::unique_ptr<DiskStore> store(new DiskStore(real));
  store->RemoveLeftovers();
  return store;
}

// Work that was cut short, and disks without a name. Machines keep what they have open.
void DiskStore::RemoveLeftovers() const {
  std::error_code ignored;
  std::set<std::string> named;
  for (const std::string& path : records_.Paths()) {
    if (auto record = records_.Read(path); record.ok())
      named.insert(DiskPath(record->image.digest()));
  }
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(dir_ + "/disks", ignored)) {
    if (!named.contains(entry.path())) leftovers.push_back(entry.path());
  }
  for (const auto& entry : fs::directory_iterator(dir_, ignored)) {
    if (entry.path().filename().string().starts_with("work-")) leftovers.push_back(entry.path());
  }
  for (const fs::path& path : leftovers) fs::remove_all(path, ignored);
}

std::string DiskStore::DiskPath(const std::string& digest) const {
  return fmt::format("{}/disks/{}.erofs", dir_, digest.substr(digest.find(':') + 1));
}

absl::Status DiskStore::MakeDisk(const std::string& root, const std::string& digest) const {
  const std::string path = DiskPath(digest), half = fmt::format("{}.{}", path, base::RandomHex(4));
  absl::Status made = RunMkfs(half, root);
  if (made.ok() && (chmod(half.c_str(), 0644) != 0 || rename(half.c_str(), path.c_str()) != 0))
    made = base::ErrnoStatus(errno, "rename " + half);
  if (!made.ok()) unlink(half.c_str());
  return made;
}

absl::StatusOr<sandbox::Image> DiskStore::Import(const std::string& name,
                                                 const std::string& source) {
  RETURN_IF_ERROR(CheckImageName(name));
  if (source.empty() || source.front() != '/') {
    return absl::InvalidArgumentError(
        fmt::format("image source '{}' must be an absolute path on this host", source));
  }
  const base::TempPath work(dir_ + "/work-");
  const std::string scratch = work.path() + "/scratch", root = work.path() + "/root";
  RETURN_IF_ERROR(base::MakeDirs(scratch, 0700));
  ASSIGN_OR_RETURN(const ImageBundle bundle, OpenImageSource(source, scratch));
  std::error_code error;
  if (!fs::exists(DiskPath(bundle.manifest.digest), error)) {
    RETURN_IF_ERROR(base::MakeDirs(root, 0755));
    for (const ImageLayer& layer : bundle.layers)
      RETURN_IF_ERROR(ApplyLayer(layer.path, root, "layer " + layer.blob.digest));
    RETURN_IF_ERROR(MakeDisk(root, bundle.manifest.digest));
  }
  uint64_t size = 0;
  for (const ImageLayer& layer : bundle.layers) size += static_cast<uint64_t>(layer.blob.size);
  const json record = {{"name", name},
                       {"digest", bundle.manifest.digest},
                       {"size", size},
                       {"layers", bundle.layers.size()},
                       {"config", bundle.config_json}};
  RETURN_IF_ERROR(base::WriteFileAtomic(records_.Path(name), record.dump()));
  ASSIGN_OR_RETURN(const NamedRecord stored, records_.Read(records_.Path(name)));
  return stored.image;
}

absl::StatusOr<std::vector<sandbox::Image>> DiskStore::List() {
  std::vector<sandbox::Image> images;
  for (const std::string& path : records_.Paths()) {
    ASSIGN_OR_RETURN(const NamedRecord record, records_.Read(path));
    images.push_back(record.image);
  }
  return images;
}

absl::Status DiskStore::Remove(const std::string& name) { return records_.Remove(name); }

absl::StatusOr<Disk> DiskStore::Resolve(const std::string& name) {
  if (name.empty()) return DefaultRoot();
  RETURN_IF_ERROR(CheckImageName(name));
  absl::StatusOr<NamedRecord> record = records_.Read(records_.Path(name));
  if (absl::IsNotFound(record.status())) {
    return absl::NotFoundError(
        fmt::format("there is no image '{}': import it first (reprise image import)", name));
  }
  RETURN_IF_ERROR(record.status());
  Disk disk{DiskPath(record->image.digest()), record->image.digest(), {}};
  ASSIGN_OR_RETURN(disk.config, ParseConfig(record->Text("config"), fmt::format("image {}", name)));
  if (access(disk.path.c_str(), R_OK) != 0)
    return absl::DataLossError(
        fmt::format("the disk {} of image '{}' is gone: import it again", disk.path, name));
  return disk;
}

absl::StatusOr<Disk> DiskStore::DefaultRoot() {
  absl::MutexLock lock(&default_mutex_);
  absl::StatusOr<std::string> busybox = base::ReadFile(kBusybox, kBusyboxBytesMax);
  if (!busybox.ok()) {
    return absl::FailedPreconditionError(
        fmt::format("a sandbox without an image is made of {}, which is not there: name an image, "
                    "or 'apt-get install busybox-static'",
                    kBusybox));
  }
  Disk disk;
  disk.digest = Sha256Digest(kDefaultVersion + *busybox);
  disk.path = DiskPath(disk.digest);
  if (access(disk.path.c_str(), R_OK) == 0) return disk;
  const base::TempPath work(dir_ + "/work-");
  RETURN_IF_ERROR(MakeBusyboxRoot(work.path()));
  RETURN_IF_ERROR(MakeDisk(work.path(), disk.digest));
  return disk;
}

}  // namespace reprise::sandboxd::microvm
