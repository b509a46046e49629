#include "sandboxd/image/layer_reader.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "base/fd.h"
#include "base/format.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace reprise::sandboxd {
namespace {

using storage::kChunkBytesMax;

// A run of n chunks lets n / 4 be fetched ahead, so at most a fifth is fetched in vain where a run
// ends; up to 4 MiB.
constexpr uint64_t kRunPerAhead = 4, kAheadMax = 16;

const std::string& Zeros() {
  static const std::string zeros(kChunkBytesMax, '\0');
  return zeros;
}

void AddPiece(ReadPieces* out, const char* at, size_t size) {
  if (size > 0) out->pieces.push_back({const_cast<char*>(at), size});
}

}  // namespace

LayerReader::LayerReader(std::unique_ptr<LayerFile> layer, std::string trace_path,
                         storage::ChunkStore* store, ChunkPrefetch* prefetch)
    : layer_(std::move(layer)),
      trace_path_(std::move(trace_path)),
      store_(store),
      prefetch_(prefetch),
      touched_(layer_->chunks()) {
  // A trace is a hint: one that is damaged or of another layer does no harm.
  const std::string old = base::ReadFile(trace_path_, kTraceChunksMax * 4).value_or("");
  traced_ = old.size() / 4;
  for (size_t i = 0; i + 4 <= old.size(); i += 4) {
    uint32_t index = 0;
    for (size_t b = 0; b < 4; ++b)
      index |= static_cast<uint32_t>(static_cast<uint8_t>(old[i + b])) << (8 * b);
    if (index >= layer_->chunks()) continue;
    const ChunkRef chunk = layer_->chunk(index);
    if (chunk.length > 0 && !prefetch_->Want(chunk.id)) break;
  }
}

LayerReader::~LayerReader() {
  if (absl::Status status = SaveTrace(); !status.ok())
    base::LogWarn(fmt::format("trace of layer {}: {}", layer_->id(), status.message()));
}

absl::StatusOr<ReadPieces> LayerReader::Read(uint64_t offset, size_t size) {
  ReadPieces out;
  if (offset >= bytes()) return out;
  uint64_t end = offset + std::min<uint64_t>(size, bytes() - offset);
  const std::string_view metadata = layer_->metadata();
  if (offset < metadata.size()) {
    const uint64_t upto = std::min<uint64_t>(end, metadata.size());
    AddPiece(&out, metadata.data() + offset, upto - offset);
    offset = upto;
  }
  while (offset < end) {
    if (offset < layer_->data_start()) {  // between metadata and data
      const uint64_t upto = std::min({end, layer_->data_start(), offset + Zeros().size()});
      AddPiece(&out, Zeros().data(), upto - offset);
      offset = upto;
      continue;
    }
    const uint64_t index = (offset - layer_->data_start()) / kChunkBytesMax;
    const uint64_t inside = (offset - layer_->data_start()) % kChunkBytesMax;
    const uint64_t take = std::min(end - offset, kChunkBytesMax - inside);
    const ChunkRef chunk = layer_->chunk(index);
    uint64_t content = 0;  // bytes of `take` that the chunk has; zeros follow
    if (inside < chunk.length) {
      Touched(index);
      absl::StatusOr<storage::ChunkContent> got = store_->Get(chunk.id);
      if (got.ok() && (*got)->size() != chunk.length)
        got = absl::DataLossError(fmt::format("chunk {} has another length", chunk.id.Hex()));
      if (!got.ok()) {
        return absl::Status(
            got.status().code(),
            fmt::format("layer {} at offset {}: {}", layer_->id(), offset, got.status().message()));
      }
      content = std::min(take, chunk.length - inside);
      AddPiece(&out, (*got)->data() + inside, content);
      out.held.push_back(*std::move(got));
    }
    AddPiece(&out, Zeros().data(), take - content);
    offset += take;
  }
  return out;
}

void LayerReader::Touched(uint64_t index) {
  {
    absl::MutexLock lock(&mutex_);
    if (index == last_) return;
    run_ = index == last_ + 1 ? run_ + 1 : 0;
    last_ = index;
    if (!touched_[index] && trace_.size() < kTraceChunksMax)
      trace_.push_back(static_cast<uint32_t>(index));
    touched_[index] = true;
    if (run_ < kRunPerAhead) {
      ahead_ = 0;
      return;
    }
  }
  FetchAhead(index);
}

void LayerReader::FetchAhead(uint64_t index) {
  uint64_t from, to;
  {
    absl::MutexLock lock(&mutex_);
    from = std::max(index + 1, ahead_);
    to = std::min(index + 1 + std::min(run_ / kRunPerAhead, kAheadMax), layer_->chunks());
    ahead_ = std::max(ahead_, to);
  }
  for (; from < to; ++from) {
    const ChunkRef chunk = layer_->chunk(from);
    if (chunk.length > 0 && !prefetch_->Want(chunk.id)) return;
  }
}

absl::Status LayerReader::SaveTrace() {
  std::string text;
  {
    absl::MutexLock lock(&mutex_);
    if (trace_.size() <= traced_) return absl::OkStatus();
    traced_ = trace_.size();
    for (uint32_t index : trace_) {
      for (size_t b = 0; b < 4; ++b) text += static_cast<char>(index >> (8 * b));
    }
  }
  return base::WriteFileAtomic(trace_path_, text);
}

}  // namespace reprise::sandboxd
