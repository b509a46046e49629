#include "storage/chunk_store.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <vector>

#include "base/failpoint.h"
#include "base/format.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace reprise::storage {
namespace {

// Eviction goes down to this share of the bound, so that it does not run for every chunk.
constexpr uint64_t kEvictToNumerator = 9, kEvictToDenominator = 10;

}  // namespace

absl::StatusOr<std::unique_ptr<ChunkStore>> ChunkStore::Open(ChunkStoreOptions options) {
  ASSIGN_OR_RETURN(auto kept, ObjectDir::Open(options.dir + "/kept"));
  ASSIGN_OR_RETURN(auto copies, ObjectDir::Open(options.dir + "/copies"));
  std::unique_ptr<ChunkStore> store(
      new ChunkStore(std::move(options), std::move(kept), std::move(copies)));
  RETURN_IF_ERROR(store->CountDisk());
  return store;
}

std::string ChunkStore::ColdKey(const ChunkId& id) {
  const std::string hex = id.Hex();
  return fmt::format("chunks/{}/{}", hex.substr(0, 2), hex);
}

absl::Status ChunkStore::CountDisk() {
  uint64_t kept = 0, copied = 0;
  RETURN_IF_ERROR(kept_->ForEach([&](const ObjectDir::Info& info) { kept += info.bytes; }));
  RETURN_IF_ERROR(copies_->ForEach([&](const ObjectDir::Info& info) { copied += info.bytes; }));
  kept_bytes_ = kept;
  copied_bytes_ = copied;
  return absl::OkStatus();
}

absl::StatusOr<ChunkContent> ChunkStore::Get(const ChunkId& id) {
  if (ChunkContent content = memory_.Get(id)) {
    ++counters_.memory_hits;
    return content;
  }
  std::shared_ptr<Flight> flight;
  {
    absl::MutexLock lock(&flights_mutex_);
    auto [at, first] = flights_.try_emplace(id, nullptr);
    if (!first) {
      flight = at->second;
      flights_mutex_.Await(absl::Condition(&flight->done));
      ++counters_.joined;
      return flight->result;
    }
    flight = at->second = std::make_shared<Flight>();
  }
  // Again: another reader's fetch may have ended between the two looks.
  absl::StatusOr<ChunkContent> result = memory_.Get(id);
  if (*result != nullptr) {
    ++counters_.memory_hits;
  } else {
    result = Fetch(id);
  }
  if (result.ok()) memory_.Put(id, *result);
  absl::MutexLock lock(&flights_mutex_);
  flight->result = result;
  flight->done = true;
  flights_.erase(id);
  return result;
}

absl::StatusOr<ChunkContent> ChunkStore::Fetch(const ChunkId& id) {
  absl::Status last = absl::NotFoundError("it is in no tier");
  for (ObjectDir* dir : {kept_.get(), copies_.get()}) {
    absl::StatusOr<ChunkContent> content = FromDisk(id, dir);
    if (content.ok()) {
      ++counters_.disk_hits;
      return content;
    }
    if (!absl::IsNotFound(content.status())) last = content.status();
  }
  if (options_.cold != nullptr) {
    absl::StatusOr<ChunkContent> content = FromCold(id);
    if (content.ok()) {
      ++counters_.cold_hits;
      return content;
    }
    if (!absl::IsNotFound(content.status())) last = content.status();
  }
  if (absl::IsUnavailable(last)) return last;
  ++counters_.lost;
  return absl::DataLossError(fmt::format("chunk {} is lost: {}", id.Hex(), last.message()));
}

absl::StatusOr<ChunkContent> ChunkStore::FromDisk(const ChunkId& id, ObjectDir* dir) {
  const std::string name = id.Hex();
  ASSIGN_OR_RETURN(const std::string object,
                   dir->Read(name, kChunkObjectBytesMax, /*touch=*/dir == copies_.get()));
  absl::StatusOr<std::string> content = DecodeChunk(id, object);
  if (content.ok()) return std::make_shared<const std::string>(*std::move(content));
  ++counters_.damaged;
  const std::string words = fmt::format("{}, in {}", content.status().message(), dir->path());
  // A copy can be had again; what is kept stays for whoever looks into the damage.
  if (dir == copies_.get()) {
    (void)dir->Remove(name);
    base::LogWarn(words + ": removed, the cold tier has it");
  }
  return absl::DataLossError(words);
}

absl::StatusOr<ChunkContent> ChunkStore::FromCold(const ChunkId& id) {
  ASSIGN_OR_RETURN(const std::string object, options_.cold->Get(ColdKey(id), kChunkObjectBytesMax));
  counters_.cold_bytes += object.size();
  absl::StatusOr<std::string> content = DecodeChunk(id, object);
  if (!content.ok()) {
    ++counters_.damaged;
    return absl::DataLossError(fmt::format("{}, in the cold tier", content.status().message()));
  }
  KeepCopy(id, object);
  return std::make_shared<const std::string>(*std::move(content));
}

// A disk that takes no copy slows reads down and breaks none.
void ChunkStore::KeepCopy(const ChunkId& id, std::string_view object) {
  if (copied_bytes_ + kept_bytes_ + object.size() > options_.disk_bytes_max) Evict();
  if (copied_bytes_ + kept_bytes_ + object.size() > options_.disk_bytes_max) return;
  if (absl::Status status = copies_->PutCopy(id.Hex(), object); !status.ok()) {
    base::LogWarn(fmt::format("no copy of chunk {}: {}", id.Hex(), status.message()));
    return;
  }
  copied_bytes_ += object.size();
}

void ChunkStore::Evict() {
  absl::MutexLock lock(&evict_mutex_);
  std::vector<ObjectDir::Info> copies;
  uint64_t copied = 0;
  absl::Status listed = copies_->ForEach([&](const ObjectDir::Info& info) {
    copies.push_back(info);
    copied += info.bytes;
  });
  if (!listed.ok()) base::LogWarn(fmt::format("evict: {}", listed.message()));
  const uint64_t kept = std::min(kept_bytes_.load(), options_.disk_bytes_max);
  const uint64_t room = (options_.disk_bytes_max - kept) / kEvictToDenominator * kEvictToNumerator;
  std::sort(copies.begin(), copies.end(),
            [](const auto& a, const auto& b) { return a.used_us < b.used_us; });
  for (const ObjectDir::Info& info : copies) {
    if (copied <= room) break;
    const absl::StatusOr<bool> removed = copies_->Remove(info.name);
    if (!removed.ok()) {
      base::LogWarn(fmt::format("evict: {}", removed.status().message()));
      continue;
    }
    copied -= info.bytes;
    if (*removed) ++counters_.evicted;
  }
  copied_bytes_ = copied;
}

absl::StatusOr<std::unique_ptr<ChunkStore::Writer>> ChunkStore::Begin() {
  std::unique_ptr<ObjectDir::Batch> batch;
  if (options_.cold == nullptr) {
    ASSIGN_OR_RETURN(batch, kept_->Begin());
  }
  return std::unique_ptr<Writer>(new Writer(this, std::move(batch)));
}

absl::StatusOr<ChunkId> ChunkStore::Writer::Put(std::string_view content) {
  const ChunkId id = HashChunk(content);
  const std::string name = id.Hex();
  bool is_new = false;
  uint64_t bytes = 0;
  if (batch_ != nullptr) {
    if (batch_->Has(name)) return id;
    const std::string object = EncodeChunk(content);
    bytes = object.size();
    if (store_->kept_bytes_ + new_bytes_ + bytes > store_->options_.disk_bytes_max) {
      return absl::ResourceExhaustedError(
          fmt::format("{} is full ({} bytes): raise its bound, remove images and collect, or "
                      "give it a cold tier",
                      store_->options_.dir, store_->options_.disk_bytes_max));
    }
    ASSIGN_OR_RETURN(is_new, batch_->Put(name, object));
  } else {
    ColdTier* cold = store_->options_.cold.get();
    ASSIGN_OR_RETURN(const bool there, cold->Has(ColdKey(id)));
    if (there) return id;
    const std::string object = EncodeChunk(content);
    bytes = object.size();
    RETURN_IF_ERROR(cold->Put(ColdKey(id), object));
    store_->KeepCopy(id, object);
    is_new = true;
  }
  if (is_new) {
    new_bytes_ += bytes;
    ++new_chunks_;
  }
  return id;
}

absl::Status ChunkStore::Writer::Commit() {
  if (batch_ == nullptr) return absl::OkStatus();  // each Put was durable
  RETURN_IF_ERROR(batch_->Commit());
  store_->kept_bytes_ += new_bytes_;
  return absl::OkStatus();
}

absl::StatusOr<ChunkStore::Collected> ChunkStore::Collect(
    const std::function<bool(const ChunkId&)>& named) {
  Collected collected;
  for (ObjectDir* dir : {kept_.get(), copies_.get()}) {
    std::vector<ObjectDir::Info> unnamed;
    RETURN_IF_ERROR(dir->ForEach([&](const ObjectDir::Info& info) {
      const absl::StatusOr<ChunkId> id = ParseChunkId(info.name);
      if (id.ok() && !named(*id)) unnamed.push_back(info);
    }));
    for (const ObjectDir::Info& info : unnamed) {
      ASSIGN_OR_RETURN(const bool removed, dir->Remove(info.name));
      if (!removed) continue;
      ++collected.chunks;
      collected.bytes += info.bytes;
      base::FailPoint("collect.chunk");
    }
  }
  RETURN_IF_ERROR(CountDisk());
  return collected;
}

absl::StatusOr<uint64_t> ChunkStore::DiskBytes() const {
  uint64_t bytes = 0;
  for (const ObjectDir* dir : {kept_.get(), copies_.get()}) {
    RETURN_IF_ERROR(dir->ForEach([&](const ObjectDir::Info& info) { bytes += info.bytes; }));
  }
  return bytes;
}

uint64_t ChunkStore::StoredBytes(const ChunkId& id) const {
  const std::string hex = id.Hex();
  struct stat info {};
  for (const ObjectDir* dir : {kept_.get(), copies_.get()}) {
    if (stat(dir->PathOf(hex).c_str(), &info) == 0) return static_cast<uint64_t>(info.st_size);
  }
  return 0;
}

}  // namespace reprise::storage
