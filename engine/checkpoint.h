// A checkpoint directory as the hub ships it: config.json, tokenizer.json and safetensors, in one
// file or in shards with an index. Every tensor is checked against the config before it is used.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/config.h"
#include "engine/safetensors.h"

namespace reprise::engine {

class Checkpoint {
 public:
  // Maps model.safetensors, or the shards that model.safetensors.index.json names. Reads headers
  // only. Errors name the file: NOT_FOUND, DATA_LOSS (truncated, a tensor in two shards, index and
  // shards disagree).
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);

  // That the tensors are exactly those of the config, each with its shape and a dtype that this
  // engine computes with. The error names the first tensor that is missing, unknown, of the wrong
  // shape (expected and found), or of a stored type that is not read. Tensors of MTP blocks are let
  // be.
  absl::Status CheckAgainst(const ModelConfig& config) const;

  // nullptr when there is none.
  const TensorView* Find(const std::string& name) const;
  // All tensors by name, MTP included.
  const std::map<std::string, const TensorView*>& tensors() const { return tensors_; }
  const std::string& directory() const { return directory_; }

 private:
  explicit Checkpoint(std::string directory) : directory_(std::move(directory)) {}
  absl::Status OpenShards();

  const std::string directory_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const TensorView*> tensors_;
};

}  // namespace reprise::engine
