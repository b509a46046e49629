// libarchive as RAII, with errors that say whether an archive is truncated or not an archive at
// all.
#pragma once

#include <archive.h>
#include <archive_entry.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::sandboxd {

struct ArchiveReadFree {
  void operator()(archive* reader) const { archive_read_free(reader); }
};
using ArchiveReader = std::unique_ptr<archive, ArchiveReadFree>;

// Opens a tar, plain or compressed with gzip or zstd; no other format is recognised. `what` names
// it in errors.
absl::StatusOr<ArchiveReader> OpenTar(const std::string& path, const std::string& what);

// The error of the last operation: DATA_LOSS, "<what>: truncated or malformed: <libarchive's
// words>".
absl::Status ArchiveError(archive* reader, const std::string& what);

// INVALID_ARGUMENT when a path of an archive would leave the place where it is unpacked: absolute,
// or with "..". A leading "./" is fine.
absl::Status CheckArchivePath(const std::string& path, const std::string& what);

}  // namespace reprise::sandboxd
