#include "tests/unit/storage/sim_disk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

namespace reprise::storage {

class SimDisk::File final : public rocksdb::WritableFileWrapper {
 public:
  File(SimDisk* disk, std::string name, std::unique_ptr<rocksdb::WritableFile> file)
      : rocksdb::WritableFileWrapper(file.get()),
        disk_(disk),
        name_(std::move(name)),
        file_(std::move(file)) {}

  rocksdb::Status Append(const rocksdb::Slice& data) override {
    bool torn = false;
    rocksdb::Status status = disk_->Next(Kind::kWrite, &torn);
    if (status.ok()) {
      size_ += data.size();
      return file_->Append(data);
    }
    if (torn) {
      size_ += data.size() / 2;
      (void)file_->Append(rocksdb::Slice(data.data(), data.size() / 2));
    }
    return status;
  }
  rocksdb::Status Append(const rocksdb::Slice& data,
                         const rocksdb::DataVerificationInfo&) override {
    return Append(data);
  }
  rocksdb::Status Sync() override {
    rocksdb::Status status = disk_->Next(Kind::kSync);
    if (status.ok()) disk_->Synced(name_, size_);
    return status;
  }
  rocksdb::Status Fsync() override { return Sync(); }

 private:
  SimDisk* const disk_;
  const std::string name_;
  const std::unique_ptr<rocksdb::WritableFile> file_;
  uint64_t size_ = 0;
};

class SimDisk::Dir final : public rocksdb::Directory {
 public:
  Dir(SimDisk* disk, std::string name) : disk_(disk), name_(std::move(name)) {}
  rocksdb::Status Fsync() override {
    rocksdb::Status status = disk_->Next(Kind::kSync);
    if (!status.ok()) return status;
    absl::MutexLock lock(&disk_->mutex_);
    std::erase_if(disk_->changes_, [this](const NameChange& change) {
      return change.to.substr(0, change.to.rfind('/')) == name_;
    });
    return status;
  }

 private:
  SimDisk* const disk_;
  const std::string name_;
};

SimDisk::SimDisk()
    : rocksdb::EnvWrapper(
          std::unique_ptr<rocksdb::Env>(rocksdb::NewMemEnv(rocksdb::Env::Default()))) {}
SimDisk::~SimDisk() = default;

void SimDisk::Arm(DiskFault fault, int at) {
  absl::MutexLock lock(&mutex_);
  fault_ = fault;
  at_ = at;
  points_ = 0;
  fired_ = false;
}

int SimDisk::points() const {
  absl::MutexLock lock(&mutex_);
  return points_;
}

bool SimDisk::fired() const {
  absl::MutexLock lock(&mutex_);
  return fired_;
}

DiskOperation SimDisk::fired_at() const {
  absl::MutexLock lock(&mutex_);
  return fired_at_;
}

rocksdb::Status SimDisk::Next(Kind kind, bool* torn) {
  absl::MutexLock lock(&mutex_);
  const bool end = fault_ == DiskFault::kKilled || fault_ == DiskFault::kPowerCut ||
                   fault_ == DiskFault::kPowerCutTorn;
  const bool hit = end ||
                   (kind == Kind::kWrite &&
                    (fault_ == DiskFault::kWriteError || fault_ == DiskFault::kNoSpace)) ||
                   (kind == Kind::kSync && fault_ == DiskFault::kSyncError) ||
                   (kind == Kind::kName && fault_ == DiskFault::kRenameError);
  if (!hit) return rocksdb::Status::OK();
  const int point = points_++;
  const bool lasting = end || fault_ == DiskFault::kNoSpace;
  if (point != at_ && !(lasting && point > at_)) return rocksdb::Status::OK();
  if (!fired_) fired_at_ = kind;
  fired_ = true;
  if (torn != nullptr) *torn = point == at_ && (!end || fault_ == DiskFault::kPowerCutTorn);
  if (fault_ == DiskFault::kNoSpace) return rocksdb::Status::NoSpace("injected");
  return rocksdb::Status::IOError("injected");
}

void SimDisk::Synced(const std::string& name, uint64_t size) {
  absl::MutexLock lock(&mutex_);
  synced_[name] = size;
}

void SimDisk::Restart() {
  absl::MutexLock lock(&mutex_);
  const bool torn = fault_ == DiskFault::kPowerCutTorn;
  const bool cut = fired_ && (torn || fault_ == DiskFault::kPowerCut);
  fault_ = DiskFault::kNone;
  if (!cut) return;
  for (auto change = changes_.rbegin(); change != changes_.rend(); ++change) {
    if (change->from.empty()) {
      (void)target()->DeleteFile(change->to);
      synced_.erase(change->to);
      continue;
    }
    (void)target()->RenameFile(change->to, change->from);
    synced_[change->from] = std::exchange(synced_[change->to], change->old_content.size());
    if (change->replaced) Write(change->to, change->old_content);
  }
  changes_.clear();
  for (auto& [name, size] : synced_) {
    if (!target()->FileExists(name).ok()) continue;
    const std::string content = Read(name);
    if (content.size() <= size) continue;
    const uint64_t kept = torn ? size + (content.size() - size) / 2 : size;
    Write(name, content.substr(0, kept));
    size = kept;
  }
}

std::string SimDisk::Read(const std::string& path) {
  std::string content;
  EXPECT_TRUE(rocksdb::ReadFileToString(target(), path, &content).ok()) << path;
  return content;
}

void SimDisk::Write(const std::string& path, const std::string& content) {
  EXPECT_TRUE(rocksdb::WriteStringToFile(target(), content, path).ok()) << path;
}

void SimDisk::Flip(const std::string& path, size_t byte, unsigned char mask) {
  std::string content = Read(path);
  content[byte] = static_cast<char>(static_cast<unsigned char>(content[byte]) ^ mask);
  Write(path, content);
}

std::vector<std::string> SimDisk::Files(const std::string& directory) {
  std::vector<std::string> names;
  EXPECT_TRUE(target()->GetChildren(directory, &names).ok());
  std::sort(names.begin(), names.end());
  return names;
}

rocksdb::Status SimDisk::NewWritableFile(const std::string& name,
                                         std::unique_ptr<rocksdb::WritableFile>* result,
                                         const rocksdb::EnvOptions& options) {
  rocksdb::Status status = Next(Kind::kName);
  if (!status.ok()) return status;
  const bool existed = target()->FileExists(name).ok();
  std::unique_ptr<rocksdb::WritableFile> file;
  status = target()->NewWritableFile(name, &file, options);
  if (!status.ok()) return status;
  *result = std::make_unique<File>(this, name, std::move(file));
  absl::MutexLock lock(&mutex_);
  synced_[name] = 0;
  if (!existed) changes_.push_back({"", name, false, ""});
  return status;
}

rocksdb::Status SimDisk::NewDirectory(const std::string& name,
                                      std::unique_ptr<rocksdb::Directory>* result) {
  *result = std::make_unique<Dir>(this, name);
  return rocksdb::Status::OK();
}

rocksdb::Status SimDisk::RenameFile(const std::string& from, const std::string& to) {
  rocksdb::Status status = Next(Kind::kName);
  if (!status.ok()) return status;
  NameChange change{from, to, target()->FileExists(to).ok(), ""};
  if (change.replaced) change.old_content = Read(to);
  status = target()->RenameFile(from, to);
  if (!status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  synced_[to] = synced_[from];
  synced_.erase(from);
  changes_.push_back(std::move(change));
  return status;
}

// A deletion that is forgotten leaves a file that nobody needs: nothing to remember.
rocksdb::Status SimDisk::DeleteFile(const std::string& name) {
  rocksdb::Status status = Next(Kind::kDelete);
  if (!status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  synced_.erase(name);
  std::erase_if(changes_, [&](const NameChange& change) { return change.to == name; });
  return target()->DeleteFile(name);
}

}  // namespace reprise::storage
