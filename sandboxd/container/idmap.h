// User namespaces and id-mapped mounts: a sandbox's root is an unprivileged user of the host, and
// the image's files need no chown, because the mounts translate their owners. Needs Linux 5.19
// (overlayfs on id-mapped layers).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fd.h"

namespace reprise::sandboxd {

inline constexpr uint32_t kIdsPerSandbox = 65536;     // ids 0..65535 inside
inline constexpr uint32_t kFirstMappedId = 1u << 20;  // host id of the first sandbox's root
inline constexpr uint32_t kMappedSandboxesMax =
    16'384;  // sandboxes with ids of their own at one time

// The overlay of a prepared snapshot, as its mount options name it.
struct OverlayDirs {
  std::vector<std::string> lower;  // topmost first
  std::string upper;               // upper and work share a parent
  std::string work;
};

// A user namespace in which 0..kIdsPerSandbox-1 are the host's base_id... Nothing runs in it.
absl::StatusOr<base::UniqueFd> MakeUserNamespace(uint32_t base_id);

// Mounts the overlay read-write, nodev and nosuid at `directory`/rootfs; `directory` is private to
// the caller, exists and keeps its mount points. With base_id != 0 every layer is id-mapped.
// Nothing stays mounted on an error.
absl::Status MountRootfs(const OverlayDirs& dirs, const std::string& directory, uint32_t base_id);

// Mounts a host directory or file, without what is mounted inside it, at `target` (made here), so
// that the host's owners are the same numbers inside the sandbox. The file system must know
// id-mapped mounts.
absl::Status MountIdMapped(const std::string& source, const std::string& target, uint32_t base_id);

// Unmounts what MountIdMapped mounted and removes the mount point. OK when nothing is mounted or
// there.
absl::Status UnmountIdMapped(const std::string& target);

// Unmounts everything that MountRootfs may have left below `directory`. OK when nothing is mounted.
absl::Status UnmountRootfs(const std::string& directory);

// Tries an id-mapped overlay on the file system of `directory`. Not OK: why it cannot be used
// there.
absl::Status ProbeIdMappedOverlay(const std::string& directory);

}  // namespace reprise::sandboxd
