#include "sandboxd/image/chunk_packer.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/crc32c.h"
#include "base/status_macros.h"
#include "sandboxd/image/erofs_writer.h"

namespace reprise::sandboxd {
namespace {

using storage::kChunkBytesMax;

constexpr size_t kQueuedMax = 32;
constexpr size_t kWorkersMin = 2, kWorkersMax = 16;
constexpr size_t kChunksMax = 64u << 20;  // 16 TiB
// Small files share chunks of at most this: whoever reads one file fetches its neighbours too.
constexpr size_t kSharedBytesMax = 64 << 10;
// One small file in sixteen ends the chunk that it shares.
constexpr uint32_t kCutMask = 15;

bool AllZero(std::string_view data) {
  return !data.empty() && data[0] == '\0' && std::equal(data.begin() + 1, data.end(), data.begin());
}

}  // namespace

ChunkPacker::ChunkPacker(storage::ChunkStore::Writer* writer)
    : writer_(writer), queue_(kQueuedMax) {
  const size_t count =
      std::clamp<size_t>(std::thread::hardware_concurrency(), kWorkersMin, kWorkersMax);
  for (size_t i = 0; i < count; ++i) workers_.emplace_back([this] { Work(); });
}

ChunkPacker::~ChunkPacker() {
  queue_.Close();
  for (std::thread& worker : workers_) {
    if (worker.joinable()) worker.join();
  }
}

void ChunkPacker::Work() {
  while (std::optional<Job> job = queue_.Pop()) {
    {
      absl::MutexLock lock(&mutex_);
      if (!failed_.ok()) continue;
    }
    ChunkRef chunk;
    absl::Status status;
    if (!AllZero(job->content)) {
      absl::StatusOr<storage::ChunkId> id = writer_->Put(job->content);
      status = id.status();
      if (id.ok()) chunk = {*id, static_cast<uint32_t>(job->content.size())};
    }
    absl::MutexLock lock(&mutex_);
    if (status.ok()) {
      chunks_[job->index] = chunk;
    } else if (failed_.ok()) {
      failed_ = status;
    }
  }
}

absl::StatusOr<size_t> ChunkPacker::NewChunk() {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(failed_);
  if (chunks_.size() >= kChunksMax)
    return absl::ResourceExhaustedError("a layer of more than 16 TiB does not fit into EROFS");
  chunks_.emplace_back();
  return chunks_.size() - 1;
}

absl::Status ChunkPacker::Send(size_t index, std::string content) {
  queue_.Push({index, std::move(content)});
  absl::MutexLock lock(&mutex_);
  return failed_;
}

absl::Status ChunkPacker::CloseShared() {
  if (shared_.empty()) return absl::OkStatus();
  return Send(shared_index_, std::exchange(shared_, std::string()));
}

absl::StatusOr<uint64_t> ChunkPacker::Begin(uint64_t size) {
  left_ = size;
  large_ = size >= kSharedBytesMax;
  crc_ = 0;
  if (size == 0) return 0;
  if (large_) {
    absl::MutexLock lock(&mutex_);
    return chunks_.size() * kChunkBytesMax;
  }
  const size_t padding = (kErofsBlockBytes - shared_.size() % kErofsBlockBytes) % kErofsBlockBytes;
  if (shared_.size() + padding + size > kSharedBytesMax) RETURN_IF_ERROR(CloseShared());
  if (shared_.empty()) {
    ASSIGN_OR_RETURN(shared_index_, NewChunk());
  } else {
    shared_.append(padding, '\0');
  }
  return shared_index_ * kChunkBytesMax + shared_.size();
}

absl::Status ChunkPacker::FlushLarge() {
  ASSIGN_OR_RETURN(const size_t index, NewChunk());
  return Send(index, std::exchange(pending_, std::string()));
}

absl::Status ChunkPacker::Append(std::string_view data) {
  if (data.size() > left_) return absl::DataLossError("a file has more content than its size says");
  left_ -= data.size();
  if (!large_) {
    crc_ = base::Crc32c(data, crc_);
    shared_ += data;
    return absl::OkStatus();
  }
  while (!data.empty()) {
    const size_t take = std::min(data.size(), kChunkBytesMax - pending_.size());
    if (pending_.empty()) pending_.reserve(kChunkBytesMax);
    pending_ += data.substr(0, take);
    data.remove_prefix(take);
    if (pending_.size() == kChunkBytesMax) RETURN_IF_ERROR(FlushLarge());
  }
  return absl::OkStatus();
}

absl::Status ChunkPacker::Skip(uint64_t bytes) {
  static const std::string zeros(kErofsBlockBytes, '\0');
  while (bytes > 0) {
    if (large_ && pending_.empty() && bytes >= kChunkBytesMax && left_ >= kChunkBytesMax) {
      RETURN_IF_ERROR(NewChunk().status());  // a hole
      left_ -= kChunkBytesMax;
      bytes -= kChunkBytesMax;
      continue;
    }
    const uint64_t take = std::min<uint64_t>(bytes, zeros.size());
    RETURN_IF_ERROR(Append(std::string_view(zeros).substr(0, take)));
    bytes -= take;
  }
  return absl::OkStatus();
}

absl::Status ChunkPacker::End() {
  if (left_ != 0) return absl::DataLossError("a file has less content than its size says");
  if (large_) return pending_.empty() ? absl::OkStatus() : FlushLarge();
  if (!shared_.empty() && crc_ != 0 && (crc_ & kCutMask) == 0) return CloseShared();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ChunkRef>> ChunkPacker::Finish() {
  RETURN_IF_ERROR(CloseShared());
  queue_.Close();
  for (std::thread& worker : workers_) worker.join();
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(failed_);
  return std::move(chunks_);
}

}  // namespace reprise::sandboxd
