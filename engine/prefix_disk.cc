#include "engine/prefix_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <utility>

#include <fmt/format.h>

#include "base/format.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace reprise::engine {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMagic = "RPRPFX01";
constexpr std::string_view kSuffix = ".kv";
constexpr size_t kHashBytes = SHA256_DIGEST_LENGTH, kKeyDigits = 2 * kHashBytes;
constexpr int64_t kFloatBytes = sizeof(float);
// Magic, hash, key, then bytes of page and of block, and positions that the MTP block has seen.
constexpr int64_t kHeadBytes = 8 + 2 * static_cast<int64_t>(kHashBytes) + 3 * 8;
constexpr int64_t kQueuedBytesMax = int64_t{256} << 20;

std::string Hash(std::string_view bytes) {
  std::string hash(kHashBytes, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
         reinterpret_cast<unsigned char*>(hash.data()));
  return hash;
}

void Append(int64_t value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

std::string Hex(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) out += fmt::format("{:02x}", static_cast<uint8_t>(c));
  return out;
}

}  // namespace

PrefixDisk::PrefixDisk(const PrefixDiskOptions& options, const KvLayout* layout)
    : options_(options), layout_(layout) {}

absl::StatusOr<std::unique_ptr<PrefixDisk>> PrefixDisk::Open(const PrefixDiskOptions& options,
                                                             const KvLayout* layout) {
  if (options.bytes_max < 1 || options.period < 1) {
    return absl::InvalidArgumentError(
        fmt::format("prefix cache on disk: bound {} and period {} must be at least 1",
                    options.bytes_max, options.period));
  }
  std::unique_ptr<PrefixDisk> disk(new PrefixDisk(options, layout));
  RETURN_IF_ERROR(base::MakeDirs(options.directory, 0700));
  const std::string lock = options.directory + "/lock";
  disk->lock_.Reset(::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!disk->lock_.valid()) return base::ErrnoStatus(errno, fmt::format("cannot open {}", lock));
  if (::flock(disk->lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(fmt::format(
        "{} is the prefix cache of another engine: give this one a directory of its own",
        options.directory));
  }
  RETURN_IF_ERROR(disk->Scan());
  disk->writer_ = std::thread([raw = disk.get()] { raw->Run(); });
  return disk;
}

PrefixDisk::~PrefixDisk() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (writer_.joinable()) writer_.join();
}

absl::Status PrefixDisk::Scan() {
  struct Found {
    struct timespec used;
    std::string key;
    int64_t bytes;
  };
  std::vector<Found> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(options_.directory, error)) {
    const std::string name = entry.path().filename().string();
    if (name.size() < kKeyDigits || !name.substr(kKeyDigits).starts_with(kSuffix)) continue;
    struct stat info;
    if (::stat(entry.path().c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
    if (name.size() > kKeyDigits + kSuffix.size()) {
      ::unlink(entry.path().c_str());  // half written when the last engine ended
      continue;
    }
    found.push_back({info.st_mtim, name.substr(0, kKeyDigits), info.st_size});
  }
  if (error)
    return base::ErrnoStatus(error.value(), fmt::format("cannot list {}", options_.directory));
  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    return std::pair(a.used.tv_sec, a.used.tv_nsec) < std::pair(b.used.tv_sec, b.used.tv_nsec);
  });
  std::lock_guard lock(mutex_);
  for (const Found& file : found) Note(file.key, file.bytes, file.bytes == FileBytes(true));
  Evict();
  return absl::OkStatus();
}

std::string PrefixDisk::PathOf(const std::string& key) const {
  return fmt::format("{}/{}{}", options_.directory, key, kSuffix);
}

int64_t PrefixDisk::FileBytes(bool block) const {
  return kHeadBytes + layout_->page_bytes + (block ? layout_->block_floats * kFloatBytes : 0);
}

std::vector<std::string> PrefixDisk::Keys(const std::string& digest,
                                          absl::Span<const int32_t> tokens) const {
  std::string chain = digest;
  Append(layout_->block_floats, &chain);
  Append(layout_->page_bytes, &chain);
  chain = Hash(chain);
  std::vector<std::string> keys;
  const size_t page = static_cast<size_t>(layout_->page_tokens);
  for (size_t at = 0; at + page <= tokens.size(); at += page) {
    chain.append(reinterpret_cast<const char*>(tokens.data() + at), page * sizeof(int32_t));
    chain = Hash(chain);
    keys.push_back(Hex(chain));
  }
  return keys;
}

void PrefixDisk::Note(const std::string& key, int64_t bytes, bool block) {
  Forget(key);
  by_use_.push_front(key);
  files_[key] = {bytes, block, by_use_.begin()};
  bytes_ += bytes;
}

void PrefixDisk::Forget(const std::string& key) {
  const auto found = files_.find(key);
  if (found == files_.end()) return;
  bytes_ -= found->second.bytes;
  by_use_.erase(found->second.use);
  files_.erase(found);
}

void PrefixDisk::Evict() {
  while (bytes_ > options_.bytes_max && !by_use_.empty()) {
    const std::string key = by_use_.back();
    ::unlink(PathOf(key).c_str());
    Forget(key);
  }
}

PrefixDisk::Known PrefixDisk::Find(const std::string& digest, absl::Span<const int32_t> tokens) {
  const std::vector<std::string> keys = Keys(digest, tokens);
  std::lock_guard lock(mutex_);
  Known known;
  size_t count = 0;
  for (; count < keys.size(); ++count) {
    const auto file = files_.find(keys[count]);
    if (file == files_.end()) break;
    known.entries += layout_->page_tokens;
    if (file->second.block) known.state = known.entries;
  }
  // The last page goes first: those before it are of use without it.
  for (size_t i = count; i-- > 0;)
    by_use_.splice(by_use_.begin(), by_use_, files_.find(keys[i])->second.use);
  return known;
}

bool PrefixDisk::ReadFile(const std::string& key, bool with_block, std::string* page,
                          std::string* block, int64_t* mtp_length) {
  const std::string path = PathOf(key);
  const auto content = base::ReadFile(path);
  if (!content.ok()) return false;
  const std::string_view bytes = *content;
  const size_t page_bytes = static_cast<size_t>(layout_->page_bytes);
  int64_t numbers[3] = {};
  bool fits = static_cast<int64_t>(bytes.size()) >= kHeadBytes && bytes.starts_with(kMagic);
  if (fits) {
    std::memcpy(numbers, bytes.data() + kHeadBytes - sizeof(numbers), sizeof(numbers));
    fits = bytes.substr(8, kHashBytes) == Hash(bytes.substr(8 + kHashBytes)) &&
           Hex(bytes.substr(8 + kHashBytes, kHashBytes)) == key &&
           numbers[0] == layout_->page_bytes &&
           (numbers[1] == 0 || numbers[1] == layout_->block_floats * kFloatBytes) &&
           static_cast<int64_t>(bytes.size()) == kHeadBytes + numbers[0] + numbers[1];
  }
  if (!fits) {
    base::LogWarn(fmt::format("{} is damaged: removed, its tokens are computed again", path));
    ::unlink(path.c_str());
    std::lock_guard lock(mutex_);
    Forget(key);
    return false;
  }
  if (with_block && numbers[1] == 0) return false;
  ::utimensat(AT_FDCWD, path.c_str(), nullptr, 0);  // the next engine knows what was used
  *page += bytes.substr(static_cast<size_t>(kHeadBytes), page_bytes);
  if (with_block) *block = bytes.substr(static_cast<size_t>(kHeadBytes) + page_bytes);
  *mtp_length = numbers[2];
  return true;
}

std::optional<KvState> PrefixDisk::Read(const std::string& digest, absl::Span<const int32_t> tokens,
                                        bool with_block) {
  const std::vector<std::string> keys = Keys(digest, tokens);
  std::string pages, block(static_cast<size_t>(layout_->block_floats * kFloatBytes), '\0');
  int64_t mtp_length = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (!ReadFile(keys[i], with_block && i + 1 == keys.size(), &pages, &block, &mtp_length))
      return std::nullopt;
  }
  const int64_t length = static_cast<int64_t>(keys.size()) * layout_->page_tokens;
  std::string bytes;
  for (const int64_t number :
       {length, length, with_block ? mtp_length : 0, layout_->block_floats, layout_->page_bytes}) {
    Append(number, &bytes);
  }
  bytes += block;
  bytes += pages;
  KvState state(layout_);
  if (!state.ReadFrom(bytes)) return std::nullopt;
  return state;
}

void PrefixDisk::Insert(const std::string& digest, absl::Span<const int32_t> tokens,
                        const KvState& state) {
  const std::vector<std::string> keys = Keys(digest, tokens);
  std::lock_guard lock(mutex_);
  size_t last_block = 0;  // pages up to the last that has its block, or will
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto file = files_.find(keys[i]);
    const auto queued = queued_.find(keys[i]);
    if ((file != files_.end() && file->second.block) || (queued != queued_.end() && queued->second))
      last_block = i + 1;
  }
  const int64_t since = static_cast<int64_t>(keys.size() - last_block);
  const bool keep_block = options_.windows == PrefixWindows::kFull ? since > 0
                          : options_.windows == PrefixWindows::kPeriodic
                              ? (last_block == 0 && since > 0) || since >= options_.period
                              : false;
  bool added = false;
  for (size_t i = 0; i < keys.size(); ++i) {
    const bool block = keep_block && i + 1 == keys.size();
    if (!block && (files_.contains(keys[i]) || queued_.contains(keys[i]))) continue;
    if (queued_bytes_ + FileBytes(block) > kQueuedBytesMax) break;
    Write write{keys[i], "", block};
    for (size_t at = 0; at < kKeyDigits; at += 2)
      write.content += static_cast<char>(std::stoi(keys[i].substr(at, 2), nullptr, 16));
    Append(layout_->page_bytes, &write.content);
    Append(block ? layout_->block_floats * kFloatBytes : 0, &write.content);
    Append(block ? state.mtp_length() : 0, &write.content);
    if (layout_->page_bytes > 0) write.content += state.PageBytes(static_cast<int64_t>(i));
    if (block) write.content += state.BlockBytes();
    queued_bytes_ += FileBytes(block);
    queued_[keys[i]] |= block;
    queue_.push_back(std::move(write));
    added = true;
  }
  if (added) wake_.notify_all();
}

bool PrefixDisk::Store(const Write& write) {
  const std::string path = PathOf(write.key), partial = path + ".partial";
  const base::UniqueFd file(
      ::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  absl::Status status =
      file.valid()
          ? base::WriteAll(file.get(), std::string(kMagic) + Hash(write.content) + write.content,
                           partial)
          : base::ErrnoStatus(errno, fmt::format("cannot write {}", partial));
  // Not synced: the hash tells a file that a power cut tore.
  if (status.ok() && ::rename(partial.c_str(), path.c_str()) != 0)
    status = base::ErrnoStatus(errno, fmt::format("cannot rename {}", partial));
  if (!status.ok()) {
    ::unlink(partial.c_str());
    if (!failed_)
      base::LogWarn(
          fmt::format("prefix cache on disk: {}; it keeps what it has", status.message()));
  }
  failed_ = !status.ok();
  return status.ok();
}

void PrefixDisk::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    writing_ = false;
    if (queue_.empty()) idle_.notify_all();
    wake_.wait(lock, [&] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const Write write = std::move(queue_.front());
    queue_.pop_front();
    writing_ = true;
    lock.unlock();
    const bool stored = Store(write);
    lock.lock();
    queued_bytes_ -= FileBytes(write.block);
    if (const auto queued = queued_.find(write.key);
        queued != queued_.end() && queued->second == write.block) {
      queued_.erase(queued);
    }
    if (!stored) continue;
    Note(write.key, FileBytes(write.block), write.block);
    Evict();
  }
}

void PrefixDisk::Flush() {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [&] { return queue_.empty() && !writing_; });
}

int64_t PrefixDisk::bytes() const {
  std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace reprise::engine
