#include "sandboxd/image/image_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/status_macros.h"
#include "sandboxd/image/archive_unpack.h"
#include "sandboxd/image/disk_source.h"

namespace reprise::sandboxd {
namespace {

constexpr size_t kReadBytes = 1 << 20;

bool IsFile(const std::string& path) {
  struct stat info;
  return lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

absl::Status NotAnImage(const std::string& name) {
  return absl::InvalidArgumentError(fmt::format(
      "{}: not an image: neither index.json (OCI layout) nor manifest.json (docker save) is in it",
      name));
}

absl::StatusOr<ImageBundle> OpenLayout(const std::string& directory, const std::string& name) {
  if (IsFile(directory + "/index.json")) return OpenOciLayout(directory, name);
  if (IsFile(directory + "/manifest.json")) return OpenDockerLayout(directory, name);
  return NotAnImage(name);
}

}  // namespace

absl::StatusOr<ImageBundle> OpenImageSource(const std::string& source, const std::string& scratch) {
  struct stat info;
  if (stat(source.c_str(), &info) != 0)
    return base::ErrnoStatus(errno, fmt::format("open image {}", source));
  if (S_ISDIR(info.st_mode)) {
    if (IsFile(source + "/oci-layout")) return OpenLayout(source, source);
    return OpenRootDirectory(source, scratch);
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(
        fmt::format("{}: an image is a directory or an archive", source));
  }
  if (IsDiskFile(source)) {
    return absl::UnimplementedError(
        fmt::format("{}: a disk with a system of its own, which only the vm tier starts", source));
  }
  const std::string unpacked = scratch + "/archive";
  RETURN_IF_ERROR(base::MakeDirs(unpacked, 0700));
  RETURN_IF_ERROR(UnpackArchive(source, unpacked));
  return OpenLayout(unpacked, source);
}

absl::StatusOr<std::string> ReadDocumentBlob(const std::string& path, const BlobRef& blob,
                                             const std::string& what) {
  if (!IsFile(path))
    return absl::NotFoundError(fmt::format("{}: blob {} is missing", what, blob.digest));
  ASSIGN_OR_RETURN(std::string text, base::ReadFile(path, kImageDocumentBytesMax));
  if (static_cast<int64_t>(text.size()) != blob.size || Sha256Digest(text) != blob.digest) {
    return absl::DataLossError(
        fmt::format("{}: blob {} is damaged: its content has another digest", what, blob.digest));
  }
  return text;
}

absl::Status VerifyBlobFile(const std::string& path, const BlobRef& blob, const std::string& what) {
  base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat info;
  if (!fd.valid() || fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::NotFoundError(fmt::format("{}: blob {} is missing", what, blob.digest));
  }
  if (info.st_size != blob.size) {
    return absl::DataLossError(fmt::format("{}: blob {} has {} bytes instead of {}", what,
                                           blob.digest, info.st_size, blob.size));
  }
  Sha256 hash;
  std::string buffer(kReadBytes, '\0');
  while (true) {
    const ssize_t count = read(fd.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return base::ErrnoStatus(errno, fmt::format("{}: read {}", what, path));
    if (count == 0) break;
    hash.Update(std::string_view(buffer.data(), static_cast<size_t>(count)));
  }
  if (hash.Digest() != blob.digest) {
    return absl::DataLossError(
        fmt::format("{}: blob {} is damaged: its content has another digest", what, blob.digest));
  }
  return absl::OkStatus();
}

}  // namespace reprise::sandboxd
