// The identity of a checkpoint: what must be equal for two engines to give the same tokens.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/checkpoint.h"

namespace reprise::engine {

// SHA-256 over config.json, tokenizer.json, and name, dtype, shape and Checkpoint::Sample of every
// tensor in name order; hexadecimal. Reference numerics are a field more. Of a checkpoint above
// `whole_bytes_max` it reads a page of each tensor: training changes every page of a matrix, but a
// change of single values elsewhere is not seen.
absl::StatusOr<std::string> CheckpointDigest(const Checkpoint& checkpoint, bool reference,
                                             uint64_t whole_bytes_max = kWholeBytesMax);

}  // namespace reprise::engine
