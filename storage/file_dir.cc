#include "storage/file_dir.h"

#include <fmt/format.h>
#include <rocksdb/env.h>

#include <memory>

#include "base/fd.h"
#include "base/status_macros.h"
#include "storage/rocks_status.h"

namespace reprise::storage {
namespace {

constexpr char kUnfinished[] = ".new";

absl::Status Failed(const rocksdb::Status& status, std::string_view what, const std::string& path) {
  if (status.ok()) return absl::OkStatus();
  const std::string text = fmt::format("cannot {} {}: {}", what, path, status.ToString());
  if (IsDiskFull(status))
    return absl::ResourceExhaustedError(fmt::format("{}; free some space", text));
  return absl::DataLossError(fmt::format("{}; check the disk", text));
}

}  // namespace

absl::StatusOr<FileDir> FileDir::Open(std::string path, rocksdb::Env* env) {
  if (env == nullptr) RETURN_IF_ERROR(base::MakeDirs(path, 0700));
  FileDir dir(std::move(path), env == nullptr ? rocksdb::Env::Default() : env);
  RETURN_IF_ERROR(Failed(dir.env_->CreateDirIfMissing(dir.path_), "make", dir.path_));
  const size_t slash = dir.path_.rfind('/');
  if (slash != std::string::npos && slash > 0)
    RETURN_IF_ERROR(dir.SyncDirectory(dir.path_.substr(0, slash)));
  return dir;
}

std::string FileDir::Path(std::string_view name) const { return fmt::format("{}/{}", path_, name); }

absl::Status FileDir::SyncDirectory(const std::string& path) const {
  std::unique_ptr<rocksdb::Directory> directory;
  rocksdb::Status status = env_->NewDirectory(path, &directory);
  if (status.ok()) status = directory->Fsync();
  return Failed(status, "sync", path);
}

absl::Status FileDir::Write(std::string_view name, std::string_view bytes) const {
  const std::string path = Path(name), unfinished = path + kUnfinished;
  std::unique_ptr<rocksdb::WritableFile> file;
  rocksdb::Status status = env_->NewWritableFile(unfinished, &file, rocksdb::EnvOptions());
  if (status.ok()) status = file->Append(rocksdb::Slice(bytes.data(), bytes.size()));
  if (status.ok()) status = file->Sync();
  if (status.ok()) status = file->Close();
  if (status.ok()) status = env_->RenameFile(unfinished, path);
  if (!status.ok()) {
    file.reset();
    (void)env_->DeleteFile(unfinished);  // it may not be there; who sweeps removes it otherwise
    return Failed(status, "write", path);
  }
  return SyncDirectory(path_);
}

absl::StatusOr<std::string> FileDir::Read(std::string_view name, uint64_t bytes_max) const {
  const std::string path = Path(name);
  if (env_->FileExists(path).IsNotFound())
    return absl::NotFoundError(fmt::format("there is no file {}", path));
  uint64_t size = 0;
  RETURN_IF_ERROR(Failed(env_->GetFileSize(path, &size), "look at", path));
  if (size > bytes_max) {
    return absl::ResourceExhaustedError(
        fmt::format("{} has {} bytes, the most is {}", path, size, bytes_max));
  }
  std::string bytes;
  RETURN_IF_ERROR(Failed(rocksdb::ReadFileToString(env_, path, &bytes), "read", path));
  return bytes;
}

absl::Status FileDir::Remove(std::string_view name) const {
  const std::string path = Path(name);
  if (env_->FileExists(path).IsNotFound()) return absl::OkStatus();
  return Failed(env_->DeleteFile(path), "remove", path);
}

absl::StatusOr<std::vector<std::string>> FileDir::List() const {
  std::vector<std::string> names;
  RETURN_IF_ERROR(Failed(env_->GetChildren(path_, &names), "list", path_));
  std::erase_if(names, [](const std::string& name) { return name == "." || name == ".."; });
  return names;
}

}  // namespace reprise::storage
