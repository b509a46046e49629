// Unpacks the archive of an image (not of a layer) into an empty private directory: directories and
// regular files only, never through a link, within limits.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace reprise::sandboxd {

inline constexpr uint64_t kImageArchiveBytesMax = 256ull << 30;
inline constexpr int kImageArchiveEntriesMax = 100'000;

absl::Status UnpackArchive(const std::string& archive_path, const std::string& directory);

}  // namespace reprise::sandboxd
