// The little of the QCOW2 format that the vm tier needs itself: the check of a file that a user
// brings, and an empty file to write over one. Everything else is QEMU's, in its own process.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::sandboxd {

inline constexpr uint64_t kDiskVirtualBytesMax = 2ull << 40;

// Reads the header of `path` and returns the size of the disk in bytes. INVALID_ARGUMENT, with
// `what`, when it names another file of the host (a backing file, an external data file), is
// encrypted, needs features that are not known here, or is larger than kDiskVirtualBytesMax;
// DATA_LOSS when it is malformed or was marked corrupt.
absl::StatusOr<uint64_t> CheckQcow2(const std::string& path, const std::string& what);

// Makes an empty QCOW2 file for a disk of this size; it names no backing file, which its user gives
// by other means. ALREADY_EXISTS when there is one.
absl::Status MakeEmptyQcow2(const std::string& path, uint64_t virtual_bytes);

}  // namespace reprise::sandboxd
