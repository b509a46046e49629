#include "engine/checkpoint.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "engine/tensor_names.h"

namespace reprise::engine {
namespace {

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr uint64_t kIndexBytesMax = 64 << 20;
constexpr std::string_view kMtpPrefix = "mtp.";

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The scale's shape for a matrix of `shape` stored as F8_E4M3 or I8.
std::vector<int64_t> ScaleShape(const std::vector<int64_t>& shape, bool fp4) {
  if (fp4) return {shape[0], CeilDiv(shape[1], kFp4Block)};
  return {CeilDiv(shape[0], kFp8Block), CeilDiv(shape[1], kFp8Block)};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint(directory));
  if (::access(fmt::format("{}/{}", directory, kIndexFile).c_str(), F_OK) == 0) {
    RETURN_IF_ERROR(checkpoint->OpenShards());
    return checkpoint;
  }
  ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(fmt::format("{}/{}", directory, kSingleFile)));
  RETURN_IF_ERROR(checkpoint->Take(std::move(file)));
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
  size_t found = 0;
  for (const std::string& shard : shards) {
    ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(fmt::format("{}/{}", directory_, shard)));
    for (const auto& [name, view] : file->tensors()) {
      auto expected = shard_of.find(name);
      if (expected == shard_of.end() || expected->second != shard) {
        return absl::DataLossError(
            fmt::format("{}: tensor {} is in {} but the index does not say so", path, name, shard));
      }
      ++found;
    }
    RETURN_IF_ERROR(Take(std::move(file)));
  }
  if (found == shard_of.size()) return absl::OkStatus();
  for (const auto& [name, shard] : shard_of) {
    bool there = false;
    for (const auto& file : files_) there |= file->tensors().count(name) != 0;
    if (there) continue;
    return absl::DataLossError(
        fmt::format("{}: tensor {} is not in {} as the index says", path, name, shard));
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::Take(std::unique_ptr<SafetensorsFile> file) {
  std::vector<std::pair<std::string, TensorView>> parts;
  for (const auto& [name, view] : file->tensors()) {
    parts.clear();
    if (absl::Status status = OfficialTensors(name, view, &parts); !status.ok()) {
      return absl::Status(status.code(), fmt::format("{}: {}", file->path(), status.message()));
    }
    for (auto& [official, part] : parts) {
      if (official != name) stored_as_[official] = name;
      bytes_ += part.bytes;
      if (!tensors_.emplace(official, std::move(part)).second) {
        return absl::DataLossError(fmt::format("{}: tensor {} is there a second time, as {}",
                                               file->path(), official, name));
      }
    }
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

std::string Checkpoint::Where(const std::string& name) const {
  auto stored = stored_as_.find(name);
  if (stored == stored_as_.end()) return fmt::format("{}: tensor {}", directory_, name);
  return fmt::format("{}: tensor {} (stored as {})", directory_, name, stored->second);
}

absl::Status Checkpoint::CheckMatrix(const TensorSpec& spec, const TensorView& view,
                                     int64_t* checked) const {
  const bool fp4 = view.dtype == "I8" && spec.kind == TensorSpec::Kind::kExpert;
  if (!fp4 && view.dtype != "F8_E4M3") {
    return absl::UnimplementedError(
        fmt::format("{}: expected BF16, F32{}, found {}", Where(spec.name),
                    spec.kind == TensorSpec::Kind::kExpert   ? ", F8_E4M3 or I8 (packed FP4)"
                    : spec.kind == TensorSpec::Kind::kLinear ? " or F8_E4M3"
                                                             : "",
                    view.dtype));
  }
  if (fp4 && spec.shape[1] % kFp4Block != 0) {
    return absl::InvalidArgumentError(
        fmt::format("{}: expected a multiple of {} columns for packed FP4, found {}",
                    Where(spec.name), kFp4Block, spec.shape[1]));
  }
  const std::string name = ScaleName(spec.name);
  const std::vector<int64_t> shape = ScaleShape(spec.shape, fp4);
  const TensorView* scale = Find(name);
  if (scale == nullptr) {
    return absl::InvalidArgumentError(
        fmt::format("{}: tensor {} is missing; expected F8_E8M0 {} beside {} {}", directory_, name,
                    ShapeText(shape), view.dtype, spec.name));
  }
  if (scale->shape != shape) {
    return absl::InvalidArgumentError(fmt::format("{}: expected shape {}, found {}", Where(name),
                                                  ShapeText(shape), ShapeText(scale->shape)));
  }
  if (scale->dtype != "F8_E8M0" && scale->dtype != "F32") {
    return absl::InvalidArgumentError(
        fmt::format("{}: expected F8_E8M0 or F32, found {}", Where(name), scale->dtype));
  }
  ++*checked;
  return absl::OkStatus();
}

absl::Status Checkpoint::CheckTensor(const TensorSpec& spec, int64_t* checked) const {
  const TensorView* view = Find(spec.name);
  if (view == nullptr) {
    return absl::InvalidArgumentError(fmt::format("{}: tensor {} is missing; expected shape {}",
                                                  directory_, spec.name, ShapeText(spec.shape)));
  }
  std::vector<int64_t> shape = spec.shape;
  if (spec.kind == TensorSpec::Kind::kExpert && view->dtype == "I8") shape[1] /= 2;
  if (view->shape != shape) {
    return absl::InvalidArgumentError(fmt::format("{}: expected shape {}, found {}",
                                                  Where(spec.name), ShapeText(shape),
                                                  ShapeText(view->shape)));
  }
  ++*checked;
  if (spec.kind == TensorSpec::Kind::kTable) {
    if (view->dtype == "I64") return absl::OkStatus();
    return absl::InvalidArgumentError(
        fmt::format("{}: expected I64, found {}", Where(spec.name), view->dtype));
  }
  if (view->dtype == "BF16" || view->dtype == "F32") return absl::OkStatus();
  if (spec.kind != TensorSpec::Kind::kFloat) return CheckMatrix(spec, *view, checked);
  return absl::UnimplementedError(
      fmt::format("{}: expected BF16 or F32, found {}", Where(spec.name), view->dtype));
}

absl::Status Checkpoint::CheckAgainst(const ModelConfig& config) const {
  std::vector<TensorSpec> specs = TensorInventory(config);
  int64_t checked = 0, others = 0;
  for (const TensorSpec& spec : specs) RETURN_IF_ERROR(CheckTensor(spec, &checked));
  const int64_t main = checked;
  for (int64_t block = 0; block < MtpBlocks(config); ++block) {
    for (const TensorSpec& spec : MtpInventory(config, block))
      RETURN_IF_ERROR(CheckTensor(spec, &checked));
  }
  for (auto at = tensors_.lower_bound(std::string(kMtpPrefix));
       at != tensors_.end() && at->first.starts_with(kMtpPrefix); ++at) {
    ++others;
  }
  if (main + others == static_cast<int64_t>(tensors_.size())) return absl::OkStatus();
  std::set<std::string> known;
  for (TensorSpec& spec : specs) {
    const TensorView& view = *Find(spec.name);
    if (view.dtype == "F8_E4M3" || view.dtype == "I8") known.insert(ScaleName(spec.name));
    known.insert(std::move(spec.name));
  }
  for (const auto& [name, view] : tensors_) {
    if (known.count(name) != 0 || name.starts_with(kMtpPrefix)) continue;
    return absl::InvalidArgumentError(
        fmt::format("{} is not part of a DeepSeek-V4 with this config.json", Where(name)));
  }
  return absl::OkStatus();
}

int64_t Checkpoint::MtpBlocks(const ModelConfig& config) const {
  int64_t blocks = 0;
  while (blocks < config.num_mtp_layers) {
    const std::string prefix = fmt::format("{}{}.", kMtpPrefix, blocks);
    auto first = tensors_.lower_bound(prefix);
    if (first == tensors_.end() || !first->first.starts_with(prefix)) break;
    ++blocks;
  }
  return blocks;
}

bool Checkpoint::quantised() const {
  for (const auto& [name, view] : tensors_) {
    if ((view.dtype == "F8_E4M3" || view.dtype == "I8") && !name.starts_with(kMtpPrefix))
      return true;
  }
  return false;
}

absl::Span<const uint8_t> Checkpoint::Sample(const std::string& name, const TensorView& view,
                                             uint64_t whole_bytes_max) const {
  if (view.bytes <= kSampleBytes || bytes_ <= whole_bytes_max) return {view.data, view.bytes};
  // FNV-1a: the same place on every machine.
  uint64_t hash = 0xCBF29CE484222325;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3;
  const uint64_t at = hash % (view.bytes / kSampleBytes) * kSampleBytes;
  return {view.data + at, kSampleBytes};
}

void Checkpoint::PrefetchSamples() const {
  if (bytes_ <= kWholeBytesMax) return;
  for (const auto& [name, view] : tensors_) {
    const absl::Span<const uint8_t> sample = Sample(name, view);
    const uintptr_t address = reinterpret_cast<uintptr_t>(sample.data());
    const uintptr_t start = address - address % kSampleBytes;
    // A hint: where it fails, the reads that follow are slower.
    ::madvise(reinterpret_cast<void*>(start), address + sample.size() - start, MADV_WILLNEED);
  }
}

const TensorView* Checkpoint::Find(const std::string& name) const {
  auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

}  // namespace reprise::engine
