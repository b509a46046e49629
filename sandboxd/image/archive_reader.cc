#include "sandboxd/image/archive_reader.h"

#include <fmt/format.h>

#include <string_view>

namespace reprise::sandboxd {
namespace {

constexpr size_t kBlockBytes = 256 << 10;

}  // namespace

absl::StatusOr<ArchiveReader> OpenTar(const std::string& path, const std::string& what) {
  ArchiveReader reader(archive_read_new());
  archive_read_support_filter_gzip(reader.get());
  archive_read_support_filter_zstd(reader.get());
  archive_read_support_format_tar(reader.get());
  if (archive_read_open_filename(reader.get(), path.c_str(), kBlockBytes) != ARCHIVE_OK) {
    return ArchiveError(reader.get(), what);
  }
  return reader;
}

absl::Status ArchiveError(archive* reader, const std::string& what) {
  const char* words = archive_error_string(reader);
  return absl::DataLossError(fmt::format("{}: truncated or malformed archive: {}", what,
                                         words != nullptr ? words : "no reason given"));
}

absl::Status CheckArchivePath(const std::string& path, const std::string& what) {
  auto refuse = [&](std::string_view why) {
    return absl::InvalidArgumentError(
        fmt::format("{}: refused: the entry '{}' {}", what, path, why));
  };
  if (path.empty()) return refuse("has no name");
  if (path.front() == '/') return refuse("has an absolute name");
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    if (std::string_view(path).substr(begin, end - begin) == "..")
      return refuse("leads out of the archive");
    begin = end + 1;
  }
  return absl::OkStatus();
}

}  // namespace reprise::sandboxd
