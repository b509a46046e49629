// A checkpoint directory as the hub ships it: config.json, tokenizer.json and safetensors, in one
// file or in shards with an index, under the official names or those of transformers. Every tensor
// is checked against the config before it is used.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/config.h"
#include "engine/inventory.h"
#include "engine/safetensors.h"

namespace reprise::engine {

// A checkpoint up to so many bytes is read whole when it is loaded.
inline constexpr uint64_t kWholeBytesMax = uint64_t{1} << 30;
// What is read of each tensor of a larger one, at a place that its name decides.
inline constexpr uint64_t kSampleBytes = 4096;

class Checkpoint {
 public:
  // Maps model.safetensors, or the shards that model.safetensors.index.json names. Reads headers
  // only. Errors name the file: NOT_FOUND, DATA_LOSS (truncated, a tensor in two shards, index and
  // shards disagree).
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);

  // That the tensors are exactly those of the config, each with its shape, a dtype that this engine
  // computes with, and the scale that an FP8 or FP4 matrix needs. The error names the first tensor
  // that is missing, unknown or wrong, what was expected and what was found. A file without any
  // tensor of an MTP block is complete; of one that has some, all must be there. Others below
  // "mtp." are let be.
  absl::Status CheckAgainst(const ModelConfig& config) const;

  // By official name; nullptr when there is none.
  const TensorView* Find(const std::string& name) const;
  // All tensors by official name, MTP included; stacks are cut into their parts.
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  // As the files have them.
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }
  // Blocks whose tensors are there, at most the config's number.
  int64_t MtpBlocks(const ModelConfig& config) const;
  // A matrix stored as FP8 or FP4, the embedding and MTP left out.
  bool quantised() const;
  const std::string& directory() const { return directory_; }

  // Bytes of tensor data.
  uint64_t bytes() const { return bytes_; }
  // What a load reads of the tensor's data, so that one of hundreds of gigabytes takes no longer
  // than its headers: all of it in a checkpoint of at most `whole_bytes_max`, else a page.
  absl::Span<const uint8_t> Sample(const std::string& name, const TensorView& view,
                                   uint64_t whole_bytes_max = kWholeBytesMax) const;
  // Asks the kernel to read all samples at once, before they are looked at one by one.
  void PrefetchSamples() const;

 private:
  explicit Checkpoint(std::string directory) : directory_(std::move(directory)) {}
  absl::Status OpenShards();
  absl::Status Take(std::unique_ptr<SafetensorsFile> file);
  absl::Status CheckTensor(const TensorSpec& spec, int64_t* checked) const;
  absl::Status CheckMatrix(const TensorSpec& spec, const TensorView& view, int64_t* checked) const;
  // "DIRECTORY: tensor NAME", with the stored name where it is another.
  std::string Where(const std::string& name) const;

  const std::string directory_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, TensorView> tensors_;
  uint64_t bytes_ = 0;
  std::map<std::string, std::string> stored_as_;  // official to stored name, where they differ
};

}  // namespace reprise::engine
