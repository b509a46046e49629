#include "sandboxd/fullvm/qcow2.h"

#include <endian.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/status_macros.h"

namespace reprise::sandboxd {
namespace {

constexpr uint32_t kMagic = 0x514649fb;  // "QFI\xfb"
constexpr uint32_t kDataFileExtension = 0x44415441;
constexpr uint32_t kEndExtension = 0;
constexpr uint64_t kDirty = 1, kCorrupt = 2, kDataFile = 4, kCompression = 8, kWideEntries = 16;
constexpr uint64_t kKnownFeatures = kDirty | kCorrupt | kDataFile | kCompression | kWideEntries;
constexpr uint32_t kClusterBitsMin = 9, kClusterBitsMax = 21;
constexpr uint32_t kHeaderBytesV2 = 72, kHeaderBytesV3 = 104, kHeaderBytesMax = 4096;
constexpr uint32_t kSectorBytes = 512;

// All big-endian.
struct Header {
  uint32_t magic, version;
  uint64_t backing_offset;
  uint32_t backing_bytes, cluster_bits;
  uint64_t virtual_bytes;
  uint32_t encryption, l1_entries;
  uint64_t l1_offset, refcount_offset;
  uint32_t refcount_clusters, snapshots;
  uint64_t snapshots_offset;
  uint64_t incompatible, compatible, autoclear;
  uint32_t refcount_order, header_bytes;
} __attribute__((packed));
static_assert(sizeof(Header) == kHeaderBytesV3);

// Of the files that are made here.
constexpr uint32_t kClusterBits = 16;
constexpr uint64_t kClusterBytes = 1ull << kClusterBits;
constexpr uint64_t kBytesPerL1Entry = kClusterBytes * (kClusterBytes / sizeof(uint64_t));
constexpr uint32_t kRefcountOrder = 4;  // 16 bits each
// Header, refcount table, its one block, and the L1 table: a cluster each.
constexpr uint64_t kClustersAtFirst = 4;
static_assert(kDiskVirtualBytesMax / kBytesPerL1Entry * sizeof(uint64_t) <= kClusterBytes);

uint32_t Big32(const std::string& data, size_t at) {
  uint32_t value = 0;
  memcpy(&value, data.data() + at, sizeof(value));
  return be32toh(value);
}

}  // namespace

absl::StatusOr<uint64_t> CheckQcow2(const std::string& path, const std::string& what) {
  auto refuse = [&](const std::string& why) {
    return absl::InvalidArgumentError(fmt::format("{}: {}", what, why));
  };
  const base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return base::ErrnoStatus(errno, "open " + path);
  std::string data(kHeaderBytesMax, '\0');
  const ssize_t count = pread(fd.get(), data.data(), data.size(), 0);
  if (count < static_cast<ssize_t>(kHeaderBytesV2))
    return absl::DataLossError(fmt::format("{}: a QCOW2 file without a whole header", what));
  data.resize(static_cast<size_t>(count));
  Header header{};
  memcpy(&header, data.data(), std::min(sizeof(header), data.size()));
  const uint32_t version = be32toh(header.version);
  if (be32toh(header.magic) != kMagic || (version != 2 && version != 3))
    return refuse("not a QCOW2 file of version 2 or 3");
  if (header.backing_offset != 0 || header.backing_bytes != 0) {
    return refuse(
        "it is written over another file of the host (its backing file), which is not followed: "
        "make it whole with 'qemu-img convert -O qcow2'");
  }
  if (header.encryption != 0) return refuse("it is encrypted, which is not supported");
  const uint32_t cluster_bits = be32toh(header.cluster_bits);
  const uint64_t virtual_bytes = be64toh(header.virtual_bytes);
  if (cluster_bits < kClusterBitsMin || cluster_bits > kClusterBitsMax)
    return absl::DataLossError(fmt::format("{}: clusters of 2^{} bytes", what, cluster_bits));
  if (virtual_bytes == 0 || virtual_bytes > kDiskVirtualBytesMax) {
    return refuse(fmt::format("a disk of {} bytes; at least 1, at most {}", virtual_bytes,
                              kDiskVirtualBytesMax));
  }
  uint32_t header_bytes = kHeaderBytesV2;
  if (version == 3) {
    const uint64_t features = be64toh(header.incompatible);
    header_bytes = be32toh(header.header_bytes);
    if ((features & kDataFile) != 0) {
      return refuse(
          "its data is in another file of the host, which is not followed: make it whole with "
          "'qemu-img convert -O qcow2'");
    }
    if ((features & kCorrupt) != 0)
      return absl::DataLossError(
          fmt::format("{}: it was marked corrupt; see 'qemu-img check'", what));
    if ((features & ~kKnownFeatures) != 0)
      return refuse(fmt::format("it needs features that are not known here ({:#x})", features));
    if (header_bytes < kHeaderBytesV3 || header_bytes > data.size())
      return absl::DataLossError(fmt::format("{}: a header of {} bytes", what, header_bytes));
  }
  // Extensions: a type, a length, that many bytes padded to 8.
  for (size_t at = header_bytes; at + 8 <= data.size();) {
    const uint32_t type = Big32(data, at), length = Big32(data, at + 4);
    if (type == kEndExtension) break;
    if (type == kDataFileExtension) return refuse("it names another file of the host for its data");
    at += 8 + (static_cast<size_t>(length) + 7) / 8 * 8;
  }
  return virtual_bytes;
}

absl::Status MakeEmptyQcow2(const std::string& path, uint64_t virtual_bytes) {
  if (virtual_bytes == 0 || virtual_bytes > kDiskVirtualBytesMax ||
      virtual_bytes % kSectorBytes != 0) {
    return absl::InvalidArgumentError(fmt::format("no disk has {} bytes", virtual_bytes));
  }
  Header header{};
  header.magic = htobe32(kMagic);
  header.version = htobe32(3);
  header.cluster_bits = htobe32(kClusterBits);
  header.virtual_bytes = htobe64(virtual_bytes);
  header.refcount_offset = htobe64(kClusterBytes);
  header.refcount_clusters = htobe32(1);
  header.l1_offset = htobe64(3 * kClusterBytes);
  header.l1_entries =
      htobe32(static_cast<uint32_t>((virtual_bytes + kBytesPerL1Entry - 1) / kBytesPerL1Entry));
  header.refcount_order = htobe32(kRefcountOrder);
  header.header_bytes = htobe32(kHeaderBytesV3);
  std::string file(kClustersAtFirst * kClusterBytes, '\0');
  memcpy(file.data(), &header, sizeof(header));
  const uint64_t block = htobe64(2 * kClusterBytes);
  memcpy(file.data() + kClusterBytes, &block, sizeof(block));
  for (uint64_t i = 0; i < kClustersAtFirst; ++i) {
    const uint16_t one = htobe16(1);
    memcpy(file.data() + 2 * kClusterBytes + i * sizeof(one), &one, sizeof(one));
  }
  const base::UniqueFd fd(
      open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return base::ErrnoStatus(errno, "make " + path);
  return base::WriteAll(fd.get(), file, path);
}

}  // namespace reprise::sandboxd
