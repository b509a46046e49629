// Memory of machines in files: only the pages that are there, in compressed runs with checksums
// (FORMAT.md). A template's memory is kept whole once; of a machine that was continued from it, the
// pages that it has of its own, which the kernel knows of its private mapping, so that neither time
// nor space grows with memory that was never written.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::sandboxd::microvm {

struct MemoryImage {
  uint64_t pages = 0;         // in it
  uint64_t stored_bytes = 0;  // of the file
  uint32_t sum = 0;           // of all its runs, with their checksums
};

// Writes what the memory file `ram` has to the empty file `out`.
absl::StatusOr<MemoryImage> SaveMemoryFile(int ram, int out);
// The same of the pages that the stopped process `pid`, which maps `ram` privately, has of its own.
// UNAVAILABLE where the kernel does not let this process look.
absl::StatusOr<MemoryImage> SaveOwnPages(pid_t pid, int ram, int out);

// Back, into a memory file of the same size, or into a stopped process that maps such a file
// privately. DATA_LOSS when `in` is damaged; the memory is of no use then.
absl::StatusOr<MemoryImage> LoadMemoryFile(int in, int ram);
absl::StatusOr<MemoryImage> LoadOwnPages(int in, pid_t pid, int ram);

// What a whole file says of itself, without reading its pages.
absl::StatusOr<MemoryImage> LookAtMemory(int in);

}  // namespace reprise::sandboxd::microvm
