// A copy of a checkpoint in other number formats, under other names, or with fewer experts: what
// tests, ablations and other libraries need. Values are widened exactly and rounded once, to
// nearest; a matrix that keeps its format keeps its bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::engine {

// What matrices are stored as. kFp8: e4m3 with one scale for 128 x 128; kFp4: e2m1, experts only,
// with one scale for 32 columns.
enum class StoredAs { kKeep, kF32, kBf16, kFp8, kFp4 };

struct ConvertOptions {
  StoredAs matrices = StoredAs::kKeep;  // the linear layers; embedding, norms and such follow as
                                        // BF16 or F32
  StoredAs experts = StoredAs::kKeep;   // the routed experts
  bool transformers = false;            // names and stacks of that library, which has no MTP blocks
  int64_t experts_kept = 0;             // the first so many of each layer; 0: all
  bool mtp = true;                      // keep the MTP blocks
  uint64_t shard_bytes = 5'000'000'000;  // of one file; a larger tensor has a file to itself
  // Called now and then with bytes written so far and in all; false ends with CANCELLED.
  std::function<bool(uint64_t, uint64_t)> progress = nullptr;
};

struct Converted {
  int64_t tensors = 0, files = 0;
  uint64_t bytes = 0;  // of tensor data
};

// Writes the checkpoint `from` to the new directory `to`, with its other files (the tokenizer's)
// beside it. `to` is there whole, synced, or not at all. The token table of a hash layer is mapped
// onto the experts kept (e mod n, the next free one where a token has it already). Errors: as
// Checkpoint::Open and CheckAgainst; ALREADY_EXISTS; INVALID_ARGUMENT for what the model cannot be
// converted to; DATA_LOSS for a value that is not finite, with its tensor and row.
absl::StatusOr<Converted> ConvertCheckpoint(const std::string& from, const std::string& to,
                                            const ConvertOptions& options);

}  // namespace reprise::engine
