#include "replay/archive.h"

#include <fmt/format.h>
#include <zstd.h>

#include "base/status_macros.h"
#include "replay/sha256.h"

namespace reprise::replay {
namespace {

constexpr char kMagic[] = {'R', 'P', 'T', 'J'};
constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderBytes = 4 + 4 + 8 + 8;  // magic, version, entries, bytes of all entries
constexpr size_t kDigestBytes = 32;
constexpr int kLevel = 3;
constexpr uint64_t kEntriesBytesMax = 4ull << 30;
constexpr uint64_t kFileBytesMax = 4ull << 30;
constexpr char kSuffix[] = ".traj";

void PutLe(std::string* out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out->push_back(static_cast<char>(value >> (8 * i)));
}

uint64_t GetLe(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i > 0; --i)
    value = (value << 8) | static_cast<unsigned char>(bytes[i - 1]);
  return value;
}

}  // namespace

std::string EncodeArchive(const std::vector<journal::TrajectoryEntry>& entries) {
  std::string raw;
  for (const journal::TrajectoryEntry& entry : entries) {
    const std::string bytes = entry.SerializeAsString();
    PutLe(&raw, bytes.size(), 4);
    raw += bytes;
  }
  std::string file(kMagic, sizeof(kMagic));
  PutLe(&file, kVersion, 4);
  PutLe(&file, entries.size(), 8);
  PutLe(&file, raw.size(), 8);
  const size_t header = file.size();
  file.resize(header + ZSTD_compressBound(raw.size()));
  const size_t packed =
      ZSTD_compress(file.data() + header, file.size() - header, raw.data(), raw.size(), kLevel);
  file.resize(header + packed);  // cannot fail: the room is what zstd asks for
  return file + Sha256Of(file);
}

absl::StatusOr<std::vector<journal::TrajectoryEntry>> DecodeArchive(std::string_view file,
                                                                    const std::string& what) {
  auto damaged = [&what](size_t offset, std::string_view why) {
    return absl::DataLossError(fmt::format("{} is damaged at byte {}: {}", what, offset, why));
  };
  if (file.size() < kHeaderBytes + kDigestBytes) return damaged(file.size(), "it ends there");
  const std::string_view body = file.substr(0, file.size() - kDigestBytes);
  if (body.substr(0, sizeof(kMagic)) != std::string_view(kMagic, sizeof(kMagic)))
    return damaged(0, "it is no trajectory file");
  if (Sha256Of(body) != file.substr(body.size())) {
    return absl::DataLossError(
        fmt::format("{} is damaged: the checksum at byte {} is not that of the bytes before it",
                    what, body.size()));
  }
  if (const uint64_t version = GetLe(body.substr(4, 4)); version != kVersion) {
    return absl::UnimplementedError(
        fmt::format("{} has format version {}, this program reads {}", what, version, kVersion));
  }
  const uint64_t count = GetLe(body.substr(8, 8)), size = GetLe(body.substr(16, 8));
  if (size > kEntriesBytesMax) return damaged(16, "it claims more than 4 GiB of entries");
  std::string raw(size, '\0');
  const std::string_view packed = body.substr(kHeaderBytes);
  const size_t unpacked = ZSTD_decompress(raw.data(), raw.size(), packed.data(), packed.size());
  if (ZSTD_isError(unpacked) != 0 || unpacked != size)
    return damaged(kHeaderBytes, "its compressed part cannot be read");
  std::vector<journal::TrajectoryEntry> entries;
  for (size_t at = 0; at < raw.size();) {
    const std::string_view rest = std::string_view(raw).substr(at);
    const uint64_t length = rest.size() < 4 ? 0 : GetLe(rest.substr(0, 4));
    if (rest.size() < 4 || length > rest.size() - 4 ||
        !entries.emplace_back().ParseFromArray(rest.data() + 4, static_cast<int>(length)))
      return damaged(kHeaderBytes, fmt::format("entry {} cannot be read", entries.size()));
    at += 4 + length;
  }
  if (entries.size() != count)
    return damaged(8, fmt::format("it claims {} entries and has {}", count, entries.size()));
  return entries;
}

absl::StatusOr<Archive> Archive::Open(const std::string& directory, rocksdb::Env* env) {
  ASSIGN_OR_RETURN(storage::FileDir files, storage::FileDir::Open(directory, env));
  return Archive(std::move(files));
}

absl::StatusOr<journal::TrajectoryHead> Archive::Write(
    std::string_view trajectory_id, const std::vector<journal::TrajectoryEntry>& entries) const {
  const std::string file = EncodeArchive(entries);
  journal::TrajectoryHead head;
  head.set_file(Hex(Sha256Of(trajectory_id)) + kSuffix);
  head.set_entries(entries.size());
  head.set_bytes(file.size());
  head.set_digest(Sha256Of(file));
  RETURN_IF_ERROR(files_.Write(head.file(), file));
  return head;
}

absl::StatusOr<std::vector<journal::TrajectoryEntry>> Archive::Read(
    const journal::TrajectoryHead& head) const {
  const std::string path = files_.Path(head.file());
  absl::StatusOr<std::string> file = files_.Read(head.file(), kFileBytesMax);
  if (absl::IsNotFound(file.status()))
    return absl::DataLossError(fmt::format("{} is missing: the journal names it", path));
  RETURN_IF_ERROR(file.status());
  ASSIGN_OR_RETURN(std::vector<journal::TrajectoryEntry> entries, DecodeArchive(*file, path));
  if (Sha256Of(*file) != head.digest()) {
    return absl::DataLossError(
        fmt::format("{} is whole and not the file that the journal names", path));
  }
  return entries;
}

absl::Status Archive::Remove(const journal::TrajectoryHead& head) const {
  return files_.Remove(head.file());
}

absl::Status Archive::RemoveOthers(const std::set<std::string>& named) const {
  ASSIGN_OR_RETURN(const std::vector<std::string> files, files_.List());
  for (const std::string& file : files) {
    if (!named.contains(file)) RETURN_IF_ERROR(files_.Remove(file));
  }
  return absl::OkStatus();
}

}  // namespace reprise::replay
