// What a checkpoint directory holds, from its config and headers alone: no tensor data is read.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/config.h"

namespace reprise::engine {

struct ModelInfo {
  struct Stored {
    int64_t tensors = 0;
    int64_t elements = 0;  // as stored: a packed byte counts once
    int64_t bytes = 0;
  };
  ModelConfig config;
  std::map<std::string, Stored> by_dtype;  // all tensors of the files, MTP included
  Stored total;
  int64_t parameters = 0;  // of the tensors in the inventory, hash tables left out
  int64_t active_parameters =
      0;                   // that one token uses: routed experts counted experts_per_token times
  int64_t mtp_blocks = 0;  // that the checkpoint has
  bool quantised = false;  // FP8 or FP4 matrices
  int64_t window_layers = 0, csa_layers = 0, hca_layers = 0;
  int64_t kv_fixed_bytes = 0;  // of one sequence, whatever its length, without speculation
  int64_t kv_page_bytes = 0;   // of one page
  int64_t kv_page_tokens = 0;
  // Bytes that one sequence of `tokens` tokens takes when it shares nothing.
  int64_t KvBytes(int64_t tokens) const {
    const int64_t pages = kv_page_bytes == 0 ? 0 : (tokens + kv_page_tokens - 1) / kv_page_tokens;
    return kv_fixed_bytes + pages * kv_page_bytes;
  }
  absl::Status usable;  // what Engine::Load would say about the tensors
};

// Errors: as Checkpoint::Open and LoadConfig.
absl::StatusOr<ModelInfo> ReadModelInfo(const std::string& directory);

}  // namespace reprise::engine
