#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "base/format.h"
#include "base/status_macros.h"
#include "sandboxd/image/archive_reader.h"
#include "sandboxd/image/layer_build.h"
#include "sandboxd/image/layer_scan.h"

namespace reprise::sandboxd {
namespace {

constexpr std::string_view kWhiteoutPrefix = ".wh.", kOpaqueName = ".wh..wh..opq",
                           kAufsPrefix = ".wh..wh.";
constexpr size_t kLinkBytesMax = 4095;
// Where the runtime mounts: see layer_scan.cc.
constexpr std::array<std::string_view, 4> kMountPoints = {"dev", "proc", "sys", ".reprise"};

std::string Text(const char* text) { return text != nullptr ? text : ""; }

std::string_view Trimmed(std::string_view path) {
  while (path.starts_with("./")) path.remove_prefix(2);
  while (path.ends_with('/')) path.remove_suffix(1);
  return path;
}

class TarBuilder {
 public:
  TarBuilder(archive* reader, const std::string& what, ChunkPacker* packer, LayerTree* tree)
      : reader_(reader), what_(what), packer_(packer), tree_(tree) {}

  absl::Status Run() {
    for (uint64_t entries = 0;; ++entries) {
      archive_entry* entry = nullptr;
      const int code = archive_read_next_header(reader_, &entry);
      if (code == ARCHIVE_EOF) return absl::OkStatus();
      if (code != ARCHIVE_OK) return ArchiveError(reader_, what_);
      if (entries >= kLayerEntriesMax) return TooMuch(fmt::format("{} entries", kLayerEntriesMax));
      const std::string path(Trimmed(Text(archive_entry_pathname(entry))));
      absl::Status status = CheckArchivePath(path.empty() ? "." : path, what_);
      if (status.ok()) status = Take(entry, path == "." ? "" : path);
      if (status.ok()) continue;
      if (std::string_view(status.message().data(), status.message().size()).starts_with(what_))
        return status;
      return absl::Status(status.code(), fmt::format("{}: {}", what_, status.message()));
    }
  }

 private:
  absl::Status TooMuch(std::string_view than) const {
    return absl::ResourceExhaustedError(fmt::format("{}: more than {}", what_, than));
  }
  static absl::Status Refused(const std::string& path, std::string_view why) {
    return absl::InvalidArgumentError(fmt::format("refused: the entry '{}' {}", path, why));
  }

  absl::Status Take(archive_entry* entry, const std::string& path) {
    const size_t slash = path.rfind('/');
    const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
    const std::string parent = slash == std::string::npos ? "" : path.substr(0, slash);
    if (name == kOpaqueName) return tree_->Opaque(parent);
    if (name.starts_with(kAufsPrefix)) return absl::OkStatus();
    if (name.starts_with(kWhiteoutPrefix)) {
      const std::string gone = name.substr(kWhiteoutPrefix.size());
      if (gone.empty() || gone == "." || gone == "..") return Refused(path, "deletes nothing");
      return tree_->Whiteout(parent.empty() ? gone : parent + "/" + gone);
    }
    const char* hard_link = archive_entry_hardlink(entry);
    const mode_t type = archive_entry_filetype(entry);
    const bool is_directory = hard_link == nullptr && type == AE_IFDIR;
    if (!is_directory &&
        std::find(kMountPoints.begin(), kMountPoints.end(), path) != kMountPoints.end())
      return Refused(path, "must be a directory, the runtime mounts there");
    if (hard_link != nullptr) {
      absl::Status linked = tree_->Link(path, Trimmed(hard_link));
      if (absl::IsNotFound(linked))
        return Refused(
            path, fmt::format("is a hard link to '{}', which this layer does not have", hard_link));
      return linked;
    }
    if (type == AE_IFSOCK) return absl::OkStatus();
    if (type != AE_IFREG && type != AE_IFDIR && type != AE_IFLNK && type != AE_IFIFO)
      return Refused(path, "is a device");
    ASSIGN_OR_RETURN(LayerNode node, Attributes(entry, path, type));
    if (type == AE_IFREG) RETURN_IF_ERROR(TakeContent(entry, &node));
    return tree_->Add(path, std::move(node)).status();
  }

  absl::StatusOr<LayerNode> Attributes(archive_entry* entry, const std::string& path, mode_t type) {
    LayerNode node;
    node.mode = type | (archive_entry_perm(entry) & 07777);
    node.uid = static_cast<uint32_t>(archive_entry_uid(entry));
    node.gid = static_cast<uint32_t>(archive_entry_gid(entry));
    node.mtime_s = archive_entry_mtime(entry);
    node.mtime_ns = static_cast<uint32_t>(archive_entry_mtime_nsec(entry));
    if (type == AE_IFLNK) {
      node.target = Text(archive_entry_symlink(entry));
      if (node.target.empty() || node.target.size() > kLinkBytesMax)
        return Refused(path, "is a link with no target, or one of more than 4095 bytes");
    }
    if (type == AE_IFREG || type == AE_IFDIR) {
      archive_entry_xattr_reset(entry);
      const char* name = nullptr;
      const void* value = nullptr;
      size_t size = 0;
      while (archive_entry_xattr_next(entry, &name, &value, &size) == ARCHIVE_OK) {
        if (size > UINT16_MAX) return Refused(path, "has an extended attribute over 64 KiB");
        if (KeepsXattr(Text(name)))
          node.xattrs.emplace_back(name, std::string(static_cast<const char*>(value), size));
      }
      std::sort(node.xattrs.begin(), node.xattrs.end());
    }
    return node;
  }

  absl::Status TakeContent(archive_entry* entry, LayerNode* node) {
    node->size = static_cast<uint64_t>(std::max<la_int64_t>(archive_entry_size(entry), 0));
    bytes_ += node->size;
    if (node->size > kLayerBytesMax || bytes_ > kLayerBytesMax) return TooMuch("256 GiB");
    ASSIGN_OR_RETURN(node->data_offset, packer_->Begin(node->size));
    uint64_t at = 0;
    while (true) {
      const void* data = nullptr;
      size_t size = 0;
      la_int64_t offset = 0;
      const int code = archive_read_data_block(reader_, &data, &size, &offset);
      if (code == ARCHIVE_EOF) break;
      if (code != ARCHIVE_OK) return ArchiveError(reader_, what_);
      const auto from = static_cast<uint64_t>(offset);
      if (from < at || from + size > node->size)
        return absl::DataLossError("a sparse file whose pieces are out of order");
      RETURN_IF_ERROR(packer_->Skip(from - at));
      RETURN_IF_ERROR(packer_->Append({static_cast<const char*>(data), size}));
      at = from + size;
    }
    RETURN_IF_ERROR(packer_->Skip(node->size - at));  // a sparse file may end in a hole
    return packer_->End();
  }

  archive* const reader_;
  const std::string& what_;
  ChunkPacker* const packer_;
  LayerTree* const tree_;
  uint64_t bytes_ = 0;
};

}  // namespace

absl::Status BuildFromTar(const std::string& path, const std::string& what, ChunkPacker* packer,
                          LayerTree* tree) {
  ASSIGN_OR_RETURN(ArchiveReader reader, OpenTar(path, what));
  return TarBuilder(reader.get(), what, packer, tree).Run();
}

}  // namespace reprise::sandboxd
