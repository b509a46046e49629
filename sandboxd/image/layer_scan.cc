#include "sandboxd/image/layer_scan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "base/status_macros.h"
#include "sandboxd/image/archive_reader.h"

namespace reprise::sandboxd {
namespace {

// Where the runtime mounts: an image that has a link there makes old runtimes mount elsewhere
// (CVE-2026-41579).
constexpr std::array<std::string_view, 4> kMountPoints = {"dev", "proc", "sys", ".reprise"};

std::string_view Normalised(std::string_view name) {
  while (name.starts_with("./")) name.remove_prefix(2);
  while (name.ends_with('/')) name.remove_suffix(1);
  return name;
}

absl::Status CheckEntry(archive_entry* entry, const std::string& what) {
  const char* raw_name = archive_entry_pathname(entry);
  const std::string name = raw_name != nullptr ? raw_name : "";
  RETURN_IF_ERROR(CheckArchivePath(name, what));
  const char* hard_link = archive_entry_hardlink(entry);
  if (hard_link != nullptr) RETURN_IF_ERROR(CheckArchivePath(hard_link, what));
  const bool is_directory = hard_link == nullptr && archive_entry_filetype(entry) == AE_IFDIR;
  if (!is_directory &&
      std::find(kMountPoints.begin(), kMountPoints.end(), Normalised(name)) != kMountPoints.end()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: refused: '{}' must be a directory, the runtime mounts there", what, name));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ScanLayer(const std::string& path, const std::string& what) {
  ASSIGN_OR_RETURN(ArchiveReader reader, OpenTar(path, what));
  uint64_t bytes = 0;
  for (uint64_t entries = 0;; ++entries) {
    archive_entry* entry = nullptr;
    const int code = archive_read_next_header(reader.get(), &entry);
    if (code == ARCHIVE_EOF) return absl::OkStatus();
    if (code != ARCHIVE_OK) return ArchiveError(reader.get(), what);
    if (entries >= kLayerEntriesMax) {
      return absl::ResourceExhaustedError(
          fmt::format("{}: more than {} entries", what, kLayerEntriesMax));
    }
    RETURN_IF_ERROR(CheckEntry(entry, what));
    const la_int64_t size = std::max<la_int64_t>(archive_entry_size(entry), 0);
    bytes += static_cast<uint64_t>(size);
    if (static_cast<uint64_t>(size) > kLayerBytesMax || bytes > kLayerBytesMax) {
      return absl::ResourceExhaustedError(fmt::format("{}: unpacks to more than 256 GiB", what));
    }
    if (archive_read_data_skip(reader.get()) != ARCHIVE_OK) return ArchiveError(reader.get(), what);
  }
}

}  // namespace reprise::sandboxd
