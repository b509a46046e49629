// The identity of a checkpoint: what must be equal for two engines to give the same tokens.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/checkpoint.h"

namespace reprise::engine {

// SHA-256 over config.json, tokenizer.json, and name, dtype, shape and bytes of every tensor in
// name order; hexadecimal. Reads all data once. Reference numerics are a field more.
absl::StatusOr<std::string> CheckpointDigest(const Checkpoint& checkpoint, bool reference);

}  // namespace reprise::engine
