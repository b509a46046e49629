#include "engine/checkpoint.h"

#include <unistd.h>

#include <set>
#include <string_view>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/status_macros.h"
#include "engine/inventory.h"

namespace reprise::engine {
namespace {

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr uint64_t kIndexBytesMax = 64 << 20;
constexpr std::string_view kMtpPrefix = "mtp.";

absl::Status CheckType(const TensorSpec& spec, const TensorView& view,
                       const std::string& directory) {
  if (spec.kind == TensorSpec::Kind::kTable) {
    if (view.dtype == "I64") return absl::OkStatus();
    return absl::InvalidArgumentError(
        fmt::format("{}: tensor {}: expected I64, found {}", directory, spec.name, view.dtype));
  }
  if (view.dtype == "BF16" || view.dtype == "F32") return absl::OkStatus();
  return absl::UnimplementedError(
      fmt::format("{}: tensor {}: stored as {}; this engine computes with BF16 and F32 (convert "
                  "the checkpoint first)",
                  directory, spec.name, view.dtype));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint(directory));
  const std::string single = fmt::format("{}/{}", directory, kSingleFile);
  if (::access(fmt::format("{}/{}", directory, kIndexFile).c_str(), F_OK) == 0) {
    RETURN_IF_ERROR(checkpoint->OpenShards());
    return checkpoint;
  }
  ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(single));
  for (const auto& [name, view] : file->tensors()) checkpoint->tensors_[name] = &view;
  checkpoint->files_.push_back(std::move(file));
  return checkpoint;
}

absl::Status Checkpoint::OpenShards() {
  const std::string path = fmt::format("{}/{}", directory_, kIndexFile);
  ASSIGN_OR_RETURN(const std::string text, base::ReadFile(path, kIndexBytesMax));
  const nlohmann::json index = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return absl::DataLossError(fmt::format("{}: no weight_map object in it", path));
  }
  std::map<std::string, std::string> shard_of;
  std::set<std::string> shards;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    if (!shard.is_string() || shard.get<std::string>().find('/') != std::string::npos) {
      return absl::DataLossError(fmt::format("{}: tensor {} has no file name", path, name));
    }
    shard_of[name] = shard.get<std::string>();
    shards.insert(shard.get<std::string>());
  }
  for (const std::string& shard : shards) {
    ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(fmt::format("{}/{}", directory_, shard)));
    for (const auto& [name, view] : file->tensors()) {
      auto expected = shard_of.find(name);
      if (expected == shard_of.end() || expected->second != shard) {
        return absl::DataLossError(
            fmt::format("{}: tensor {} is in {} but the index does not say so", path, name, shard));
      }
      tensors_[name] = &view;
    }
    files_.push_back(std::move(file));
  }
  for (const auto& [name, shard] : shard_of) {
    if (tensors_.count(name) == 0) {
      return absl::DataLossError(
          fmt::format("{}: tensor {} is not in {} as the index says", path, name, shard));
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::CheckAgainst(const ModelConfig& config) const {
  std::set<std::string> known;
  for (const TensorSpec& spec : TensorInventory(config)) {
    const TensorView* view = Find(spec.name);
    if (view == nullptr) {
      return absl::InvalidArgumentError(fmt::format("{}: tensor {} is missing; expected shape {}",
                                                    directory_, spec.name, ShapeText(spec.shape)));
    }
    if (view->shape != spec.shape) {
      return absl::InvalidArgumentError(fmt::format("{}: tensor {}: expected shape {}, found {}",
                                                    directory_, spec.name, ShapeText(spec.shape),
                                                    ShapeText(view->shape)));
    }
    RETURN_IF_ERROR(CheckType(spec, *view, directory_));
    known.insert(spec.name);
  }
  for (const auto& [name, view] : tensors_) {
    if (known.count(name) == 0 && !name.starts_with(kMtpPrefix)) {
      return absl::InvalidArgumentError(fmt::format(
          "{}: tensor {} is not part of a DeepSeek-V4 with this config.json", directory_, name));
    }
  }
  return absl::OkStatus();
}

const TensorView* Checkpoint::Find(const std::string& name) const {
  auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : found->second;
}

}  // namespace reprise::engine
