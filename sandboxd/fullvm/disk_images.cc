#include "sandboxd/fullvm/disk_images.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "base/fd.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/fullvm/qcow2.h"
#include "sandboxd/image/blob.h"
#include "sandboxd/image/disk_source.h"
#include "sandboxd/image/image_name.h"

namespace reprise::sandboxd {
namespace {

namespace fs = std::filesystem;
using base::UniqueFd;
using nlohmann::json;

constexpr uint64_t kRecordBytesMax = 64 << 10;
constexpr size_t kPieceBytes = 1 << 20;
constexpr uint64_t kSectorBytes = 512;

// Copies `from`, holes as holes, and returns the digest of what the copy has.
absl::StatusOr<std::string> CopyDisk(const UniqueFd& from, const UniqueFd& to, uint64_t bytes,
                                     const std::string& what) {
  const bool cloned = ioctl(to.get(), FICLONE, from.get()) == 0;
  if (!cloned && ftruncate(to.get(), static_cast<off_t>(bytes)) != 0)
    return base::ErrnoStatus(errno, fmt::format("size the copy of {}", what));
  Sha256 hash;
  std::string piece(kPieceBytes, '\0');
  const int source = cloned ? to.get() : from.get();
  for (uint64_t at = 0; at < bytes;) {
    const ssize_t count = pread(source, piece.data(), std::min<uint64_t>(piece.size(), bytes - at),
                                static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return base::ErrnoStatus(errno, fmt::format("read {}", what));
    if (count == 0) return absl::DataLossError(fmt::format("{} became shorter meanwhile", what));
    const std::string_view data(piece.data(), static_cast<size_t>(count));
    hash.Update(data);
    if (!cloned && data.find_first_not_of('\0') != std::string_view::npos) {
      for (size_t done = 0; done < data.size();) {
        const ssize_t written =
            pwrite(to.get(), data.data() + done, data.size() - done, static_cast<off_t>(at + done));
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return base::ErrnoStatus(errno, fmt::format("copy {}", what));
        done += static_cast<size_t>(written);
      }
    }
    at += static_cast<uint64_t>(count);
  }
  if (fdatasync(to.get()) != 0 || fchmod(to.get(), 0444) != 0)
    return base::ErrnoStatus(errno, fmt::format("keep the copy of {}", what));
  return hash.Digest();
}

}  // namespace

DiskImages::DiskImages(const std::string& dir)
    : dir_(dir), records_(dir, "disk", "import its disk again", kRecordBytesMax) {}

absl::StatusOr<std::unique_ptr<DiskImages>> DiskImages::Open(const std::string& dir) {
  for (const char* const part : {"names", "files"})
    RETURN_IF_ERROR(base::MakeDirs(fmt::format("{}/{}", dir, part), 0700));
  std::error_code error;
  const fs::path real = fs::canonical(dir, error);
  if (error) return base::ErrnoStatus(error.value(), "resolve " + dir);
  std::unique_ptr<DiskImages> images(new DiskImages(real));
  images->RemoveLeftovers();
  return images;
}

// Copies that were cut short, and disks without a name. Machines keep what they have open.
void DiskImages::RemoveLeftovers() const {
  std::error_code ignored;
  std::set<std::string> named;
  for (const std::string& path : records_.Paths()) {
    if (auto record = ReadRecord(path); record.ok()) named.insert(record->path);
  }
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(dir_ + "/files", ignored)) {
    if (!named.contains(entry.path())) leftovers.push_back(entry.path());
  }
  for (const fs::path& path : leftovers) fs::remove(path, ignored);
}

std::string DiskImages::DiskPath(const std::string& digest) const {
  return fmt::format("{}/files/{}", dir_, digest.substr(digest.find(':') + 1));
}

absl::StatusOr<DiskImage> DiskImages::ReadRecord(const std::string& path) const {
  ASSIGN_OR_RETURN(const NamedRecord record, records_.Read(path));
  const auto bytes = record.numbers.find("virtual");
  DiskImage disk;
  disk.image = record.image;
  disk.format = record.Text("format");
  disk.virtual_bytes = bytes == record.numbers.end() ? 0 : bytes->second;
  if ((disk.format != "raw" && disk.format != "qcow2") || disk.virtual_bytes == 0)
    return records_.Malformed(path);
  disk.path = DiskPath(disk.image.digest());
  return disk;
}

absl::StatusOr<sandbox::Image> DiskImages::Import(const std::string& name,
                                                  const std::string& source) {
  RETURN_IF_ERROR(CheckImageName(name));
  const UniqueFd from(open(source.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat info;
  if (!from.valid() || fstat(from.get(), &info) != 0)
    return base::ErrnoStatus(errno, "open disk " + source);
  if (!S_ISREG(info.st_mode))
    return absl::InvalidArgumentError(fmt::format("{}: a disk is a regular file", source));
  const auto bytes = static_cast<uint64_t>(info.st_size);
  const std::string half = fmt::format("{}/files/half-{}", dir_, base::RandomHex(8));
  const UniqueFd to(open(half.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!to.valid()) return base::ErrnoStatus(errno, "make " + half);
  auto keep = [&]() -> absl::StatusOr<sandbox::Image> {
    ASSIGN_OR_RETURN(const std::string digest, CopyDisk(from, to, bytes, source));
    // The copy is looked at: nobody else can change it.
    const bool qcow2 = IsQcow2File(half);
    uint64_t virtual_bytes = bytes;
    if (qcow2) {
      ASSIGN_OR_RETURN(virtual_bytes, CheckQcow2(half, source));
    } else if (bytes > kDiskVirtualBytesMax) {
      return absl::InvalidArgumentError(
          fmt::format("{}: a disk has at most {} bytes", source, kDiskVirtualBytesMax));
    }
    if (virtual_bytes % kSectorBytes != 0)
      return absl::InvalidArgumentError(
          fmt::format("{}: a disk of {} bytes, which are no whole sectors", source, virtual_bytes));
    if (rename(half.c_str(), DiskPath(digest).c_str()) != 0)
      return base::ErrnoStatus(errno, "rename " + half);
    const json record = {{"name", name},
                         {"digest", digest},
                         {"size", bytes},
                         {"format", qcow2 ? "qcow2" : "raw"},
                         {"virtual", virtual_bytes}};
    RETURN_IF_ERROR(base::WriteFileAtomic(records_.Path(name), record.dump()));
    ASSIGN_OR_RETURN(const DiskImage disk, ReadRecord(records_.Path(name)));
    return disk.image;
  };
  absl::StatusOr<sandbox::Image> kept = keep();
  if (!kept.ok()) unlink(half.c_str());
  return kept;
}

absl::StatusOr<std::vector<sandbox::Image>> DiskImages::List() const {
  std::vector<sandbox::Image> images;
  for (const std::string& path : records_.Paths()) {
    ASSIGN_OR_RETURN(const DiskImage disk, ReadRecord(path));
    images.push_back(disk.image);
  }
  return images;
}

absl::Status DiskImages::Remove(const std::string& name) { return records_.Remove(name); }

absl::StatusOr<std::optional<DiskImage>> DiskImages::Find(const std::string& name) const {
  RETURN_IF_ERROR(CheckImageName(name));
  absl::StatusOr<DiskImage> disk = ReadRecord(records_.Path(name));
  if (absl::IsNotFound(disk.status())) return std::nullopt;
  RETURN_IF_ERROR(disk.status());
  if (access(disk->path.c_str(), R_OK) != 0) {
    return absl::DataLossError(
        fmt::format("the file {} of disk '{}' is gone: import it again", disk->path, name));
  }
  return *std::move(disk);
}

}  // namespace reprise::sandboxd
