// The overlay of a container's root: which directories its mount names, and a copy of the one that
// holds what the container wrote.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sandboxd/container/containerd_client.h"
#include "sandboxd/container/idmap.h"

namespace reprise::sandboxd {

// FAILED_PRECONDITION when the mounts are not one overlay with all of its directories.
absl::StatusOr<OverlayDirs> ParseOverlay(const std::vector<MountSpec>& mounts);

struct UpperCopy {
  std::string digest;          // "sha256:<hex>" over names, attributes and content
  uint64_t content_bytes = 0;  // of all files
  uint64_t copied_bytes = 0;   // of those that do not share their data with `last`
};

// Copies the upper directory `from` of an overlay, on which nothing writes meanwhile, into the
// empty directory `to` on the same file system: whiteouts, opaque directories, hard links, owners,
// times, user attributes and file capabilities. Devices and sockets are left out with a log line.
// `last` is an earlier copy of the same directory, or "": files that did not change since are hard
// links to it. On stable storage on return. UNIMPLEMENTED for overlays with redirected directories.
absl::StatusOr<UpperCopy> CopyUpper(const std::string& from, const std::string& to,
                                    const std::string& last);

}  // namespace reprise::sandboxd
