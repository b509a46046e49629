#include "sandboxd/image/erofs_writer.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cstring>

#include "base/status_macros.h"

namespace reprise::sandboxd {
namespace {

// The on-disk format: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux. All
// numbers are little-endian.
constexpr uint32_t kMagic = 0xE0F5E1E2;
constexpr size_t kSuperOffset = 1024, kSuperBytes = 128;
constexpr uint32_t kCompatMtime = 0x2;
constexpr uint8_t kBlockBits = 12;
constexpr size_t kSlotBytes = 32;  // a node number counts these from the start of the image
constexpr size_t kInodeBytes = 64;
constexpr size_t kDirentBytes = 12;
constexpr size_t kXattrHeaderBytes = 12, kXattrEntryBytes = 4;
constexpr size_t kXattrBytesMax = 64 << 10;
constexpr uint16_t kExtended = 1, kPlain = 0 << 1, kInline = 2 << 1;
constexpr char kOpaque[] = "trusted.overlay.opaque";

constexpr uint64_t RoundUp(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

void Put(std::string* out, size_t at, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) (*out)[at + i] = static_cast<char>(value >> (8 * i));
}

uint8_t FileType(uint32_t mode) {
  switch (mode & S_IFMT) {
    case S_IFREG:
      return 1;
    case S_IFDIR:
      return 2;
    case S_IFCHR:
      return 3;
    case S_IFIFO:
      return 5;
    case S_IFLNK:
      return 7;
    default:
      return 0;
  }
}

// The attribute's prefix as EROFS numbers it, and what is left of the name.
std::pair<uint8_t, std::string_view> SplitXattr(std::string_view name) {
  constexpr std::pair<std::string_view, uint8_t> kPrefixes[] = {
      {"user.", 1}, {"trusted.", 4}, {"security.", 6}};
  for (const auto& [prefix, index] : kPrefixes) {
    if (name.starts_with(prefix)) return {index, name.substr(prefix.size())};
  }
  return {0, name};
}

std::string Xattrs(const LayerNode& node) {
  std::vector<std::pair<std::string, std::string>> all = node.xattrs;
  if (node.opaque) all.emplace_back(kOpaque, "y");
  if (all.empty()) return "";
  std::string out(kXattrHeaderBytes, '\0');
  for (const auto& [name, value] : all) {
    const auto [index, rest] = SplitXattr(name);
    const size_t at = out.size();
    out.resize(at + kXattrEntryBytes);
    Put(&out, at, rest.size(), 1);
    Put(&out, at + 1, index, 1);
    Put(&out, at + 2, value.size(), 2);
    out += rest;
    out += value;
    out.resize(RoundUp(out.size(), 4));
  }
  return out;
}

struct Entry {
  std::string_view name;
  uint32_t node;
};

// Where one inode and what belongs to it lie.
struct Place {
  uint64_t offset = 0;     // of the inode
  uint64_t size = 0;       // i_size
  uint64_t blocks_at = 0;  // of a directory or link outside its inode
  std::string xattrs;      // encoded
  bool is_inline = false;  // content follows the inode
  uint32_t subdirectories = 0;
  uint32_t parent = LayerTree::kRoot;
};

class Writer {
 public:
  explicit Writer(const LayerTree& tree) : nodes_(tree.nodes()), places_(nodes_.size()) {}

  absl::StatusOr<ErofsMetadata> Write(uint64_t data_bytes, uint64_t alignment) {
    Order();
    RETURN_IF_ERROR(PlaceInodes());
    ErofsMetadata metadata;
    metadata.inodes = static_cast<uint32_t>(order_.size());
    metadata.data_start = RoundUp(end_, alignment);
    const uint64_t blocks = (metadata.data_start + data_bytes) / kErofsBlockBytes;
    if (blocks > UINT32_MAX)
      return absl::ResourceExhaustedError("a layer of more than 16 TiB does not fit into EROFS");
    out_.assign(end_, '\0');
    PutSuper(blocks);
    for (uint32_t index : order_) PutInode(index, metadata.data_start);
    metadata.bytes = std::move(out_);
    return metadata;
  }

 private:
  // Inodes in the order of a walk, the root first: its number has 16 bits only.
  void Order() {
    std::vector<bool> seen(nodes_.size());
    std::vector<uint32_t> waiting = {LayerTree::kRoot};
    seen[LayerTree::kRoot] = true;
    order_.push_back(LayerTree::kRoot);
    while (!waiting.empty()) {
      const uint32_t index = waiting.back();
      waiting.pop_back();
      for (const auto& [name, child] : nodes_[index].children) {
        if (S_ISDIR(nodes_[child].mode)) {
          ++places_[index].subdirectories;
          places_[child].parent = index;
          waiting.push_back(child);
        }
        if (seen[child]) continue;
        seen[child] = true;
        order_.push_back(child);
      }
    }
  }

  // A directory's entries, "." and ".." among them, in byte order of their names.
  std::vector<Entry> Entries(uint32_t index) const {
    std::map<std::string_view, uint32_t> sorted = {{".", index}, {"..", places_[index].parent}};
    for (const auto& [name, child] : nodes_[index].children) sorted[name] = child;
    std::vector<Entry> entries;
    for (const auto& [name, child] : sorted) entries.push_back({name, child});
    return entries;
  }

  // How many entries from `first` on go into one block, and the bytes that they take.
  static std::pair<size_t, size_t> OneBlock(const std::vector<Entry>& entries, size_t first) {
    size_t bytes = 0, count = 0;
    while (first + count < entries.size()) {
      const size_t more = kDirentBytes + entries[first + count].name.size();
      if (bytes + more > kErofsBlockBytes) break;
      bytes += more;
      ++count;
    }
    return {count, bytes};
  }

  uint64_t DirectorySize(uint32_t index) const {
    const std::vector<Entry> entries = Entries(index);
    uint64_t size = 0;
    for (size_t first = 0; first < entries.size();) {
      const auto [count, bytes] = OneBlock(entries, first);
      first += count;
      size += first == entries.size() ? bytes : kErofsBlockBytes;
    }
    return size;
  }

  absl::Status PlaceInodes() {
    uint64_t at = kSuperOffset + kSuperBytes;
    for (uint32_t index : order_) {
      const LayerNode& node = nodes_[index];
      Place& place = places_[index];
      place.xattrs = Xattrs(node);
      if (place.xattrs.size() > kXattrBytesMax)
        return absl::ResourceExhaustedError("a file has more than 64 KiB of extended attributes");
      place.size = node.size;
      if (S_ISDIR(node.mode)) place.size = DirectorySize(index);
      if (S_ISLNK(node.mode)) place.size = node.target.size();
      const bool in_metadata = S_ISDIR(node.mode) || S_ISLNK(node.mode);
      const uint64_t head = kInodeBytes + place.xattrs.size();
      place.is_inline = in_metadata && place.size > 0 && head + place.size <= kErofsBlockBytes;
      // What is inline must not cross a block; an inode alone does not either.
      const uint64_t together = place.is_inline ? head + place.size : kInodeBytes;
      if (at / kErofsBlockBytes != (at + together - 1) / kErofsBlockBytes)
        at = RoundUp(at, kErofsBlockBytes);
      place.offset = at;
      at = RoundUp(at + head + (place.is_inline ? place.size : 0), kSlotBytes);
    }
    at = RoundUp(at, kErofsBlockBytes);
    for (uint32_t index : order_) {
      Place& place = places_[index];
      if (place.is_inline || S_ISREG(nodes_[index].mode) || place.size == 0) continue;
      place.blocks_at = at;
      at = RoundUp(at + place.size, kErofsBlockBytes);
    }
    end_ = at;
    return absl::OkStatus();
  }

  uint64_t NodeNumber(uint32_t index) const { return places_[index].offset / kSlotBytes; }

  void PutSuper(uint64_t blocks) {
    const size_t at = kSuperOffset;
    Put(&out_, at, kMagic, 4);
    Put(&out_, at + 8, kCompatMtime, 4);
    Put(&out_, at + 12, kBlockBits, 1);
    Put(&out_, at + 14, NodeNumber(LayerTree::kRoot), 2);
    Put(&out_, at + 16, order_.size(), 8);
    Put(&out_, at + 36, blocks, 4);
  }

  void PutInode(uint32_t index, uint64_t data_start) {
    const LayerNode& node = nodes_[index];
    const Place& place = places_[index];
    const size_t at = place.offset;
    uint64_t block = 0;  // of the content; whiteouts are device 0/0
    if (S_ISREG(node.mode) && node.size > 0)
      block = (data_start + node.data_offset) / kErofsBlockBytes;
    if (place.blocks_at != 0) block = place.blocks_at / kErofsBlockBytes;
    const uint64_t xattr_words =
        place.xattrs.empty() ? 0 : (place.xattrs.size() - kXattrHeaderBytes) / 4 + 1;
    Put(&out_, at, kExtended | (place.is_inline ? kInline : kPlain), 2);
    Put(&out_, at + 2, xattr_words, 2);
    Put(&out_, at + 4, node.mode, 2);
    Put(&out_, at + 8, place.size, 8);
    Put(&out_, at + 16, block, 4);
    Put(&out_, at + 20, NodeNumber(index), 4);
    Put(&out_, at + 24, node.uid, 4);
    Put(&out_, at + 28, node.gid, 4);
    Put(&out_, at + 32, static_cast<uint64_t>(node.mtime_s), 8);
    Put(&out_, at + 40, node.mtime_ns, 4);
    Put(&out_, at + 44, S_ISDIR(node.mode) ? 2 + place.subdirectories : node.links, 4);
    std::memcpy(out_.data() + at + kInodeBytes, place.xattrs.data(), place.xattrs.size());
    const size_t content =
        place.is_inline ? at + kInodeBytes + place.xattrs.size() : place.blocks_at;
    if (S_ISLNK(node.mode)) std::memcpy(out_.data() + content, node.target.data(), place.size);
    if (S_ISDIR(node.mode)) PutDirectory(index, content);
  }

  void PutDirectory(uint32_t index, size_t at) {
    const std::vector<Entry> entries = Entries(index);
    for (size_t first = 0; first < entries.size(); at += kErofsBlockBytes) {
      const size_t count = OneBlock(entries, first).first;
      size_t name_at = count * kDirentBytes;
      for (size_t i = 0; i < count; ++i) {
        const Entry& entry = entries[first + i];
        const size_t dirent = at + i * kDirentBytes;
        Put(&out_, dirent, NodeNumber(entry.node), 8);
        Put(&out_, dirent + 8, name_at, 2);
        Put(&out_, dirent + 10, FileType(nodes_[entry.node].mode), 1);
        std::memcpy(out_.data() + at + name_at, entry.name.data(), entry.name.size());
        name_at += entry.name.size();
      }
      first += count;
    }
  }

  const std::vector<LayerNode>& nodes_;
  std::vector<Place> places_;
  std::vector<uint32_t> order_;
  uint64_t end_ = 0;
  std::string out_;
};

}  // namespace

absl::StatusOr<ErofsMetadata> WriteErofs(const LayerTree& tree, uint64_t data_bytes,
                                         uint64_t alignment) {
  return Writer(tree).Write(data_bytes, alignment);
}

}  // namespace reprise::sandboxd
