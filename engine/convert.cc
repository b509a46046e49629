// The new file's tensors are planned first, from the inventory of the new config: each is a list of
// sources, which are rows of the old checkpoint's tensors one after another. Then they are written,
// a few rows at a time.
#include "engine/convert.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/fd.h"
#include "base/status_macros.h"
#include "engine/checkpoint.h"
#include "engine/config.h"
#include "engine/inventory.h"
#include "engine/stored_rows.h"
#include "engine/tensor_names.h"
#include "kernels/cpu/quantise.h"

namespace reprise::engine {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr size_t kBufferBytes = 8 << 20;
constexpr uint64_t kConfigBytesMax = 16 << 20;
constexpr int kConfigIndent = 2;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

const char* DtypeOf(StoredAs as) {
  switch (as) {
    case StoredAs::kF32:
      return "F32";
    case StoredAs::kBf16:
      return "BF16";
    case StoredAs::kFp8:
      return "F8_E4M3";
    case StoredAs::kFp4:
      return "I8";
    case StoredAs::kKeep:
      break;
  }
  return "";
}

int64_t ElementBytes(std::string_view dtype) {
  return dtype == "I64" ? 8 : dtype == "F32" ? 4 : dtype == "BF16" ? 2 : 1;
}

bool Scaled(std::string_view dtype) { return dtype == "F8_E4M3" || dtype == "I8"; }

// Published checkpoints keep these as F32 whatever else they hold.
bool AlwaysF32(std::string_view name) {
  const size_t dot = name.rfind('.');
  const std::string_view leaf = dot == std::string_view::npos ? name : name.substr(dot + 1);
  return leaf.starts_with("hc_") || leaf == "ape" || leaf == "attn_sink" || leaf == "bias";
}

// The first `rows` rows of a tensor of the old checkpoint, as the new file has them.
struct Source {
  enum class Part { kValues, kScales, kTable } part = Part::kValues;
  std::string name;  // official
  int64_t rows = 0;
  std::string dtype;  // of the values in the new file
};

struct Target {
  TensorHead head;
  std::vector<Source> sources;
};

class Converter {
 public:
  Converter(const Checkpoint& checkpoint, const ModelConfig& from, const ModelConfig& to,
            const ConvertOptions& options)
      : checkpoint_(checkpoint), from_(from), to_(to), options_(options) {}

  absl::Status Plan() {
    for (const TensorSpec& spec : TensorInventory(to_)) RETURN_IF_ERROR(Add(spec));
    for (int64_t block = 0; block < to_.num_mtp_layers; ++block) {
      for (const TensorSpec& spec : MtpInventory(to_, block)) RETURN_IF_ERROR(Add(spec));
    }
    for (const Target& target : targets_) bytes_ += target.head.bytes;
    return absl::OkStatus();
  }

  absl::StatusOr<Converted> Write(const std::string& directory) {
    std::vector<std::vector<const Target*>> shards(1);
    uint64_t in_shard = 0;
    for (const Target& target : targets_) {
      if (!shards.back().empty() && in_shard + target.head.bytes > options_.shard_bytes) {
        shards.emplace_back();
        in_shard = 0;
      }
      shards.back().push_back(&target);
      in_shard += target.head.bytes;
    }
    Json map = Json::object();
    for (size_t i = 0; i < shards.size(); ++i) {
      const std::string name = shards.size() == 1 ? "model.safetensors"
                                                  : fmt::format("model-{:05}-of-{:05}.safetensors",
                                                                i + 1, shards.size());
      for (const Target* target : shards[i]) map[target->head.name] = name;
      RETURN_IF_ERROR(WriteShard(directory + "/" + name, std::move(shards[i])));
    }
    if (shards.size() > 1) {
      const Json index = {{"metadata", {{"total_size", bytes_}}}, {"weight_map", map}};
      RETURN_IF_ERROR(base::WriteFileAtomic(directory + "/model.safetensors.index.json",
                                            index.dump(kConfigIndent) + "\n"));
    }
    return Converted{static_cast<int64_t>(targets_.size()), static_cast<int64_t>(shards.size()),
                     bytes_};
  }

 private:
  std::string NewDtype(const TensorSpec& spec) const {
    const std::string& stored = checkpoint_.Find(spec.name)->dtype;
    const bool expert = spec.kind == TensorSpec::Kind::kExpert;
    const StoredAs as = expert ? options_.experts : options_.matrices;
    if (spec.kind == TensorSpec::Kind::kTable || as == StoredAs::kKeep) return stored;
    if (spec.kind != TensorSpec::Kind::kFloat) return DtypeOf(as);
    if (AlwaysF32(spec.name)) return stored;
    return as == StoredAs::kF32 ? "F32" : "BF16";
  }

  absl::Status Add(const TensorSpec& spec) {
    const std::string dtype = NewDtype(spec);
    if (dtype == "I8" && spec.shape[1] % kFp4Block != 0) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tensor {} has {} columns, and FP4 needs a multiple of {}: choose other "
                      "experts",
                      checkpoint_.directory(), spec.name, spec.shape[1], kFp4Block));
    }
    Source source;
    source.part =
        spec.kind == TensorSpec::Kind::kTable ? Source::Part::kTable : Source::Part::kValues;
    source.name = spec.name;
    source.rows = spec.shape[0];
    source.dtype = dtype;
    std::vector<int64_t> shape = spec.shape;
    if (dtype == "I8") shape[1] /= 2;
    RETURN_IF_ERROR(AddPart(spec, spec.name, dtype, shape, source));
    if (!Scaled(dtype)) return absl::OkStatus();
    source.part = Source::Part::kScales;
    const bool fp4 = dtype == "I8";
    shape = {fp4 ? spec.shape[0] : CeilDiv(spec.shape[0], kFp8Block),
             CeilDiv(spec.shape[1], fp4 ? kFp4Block : kFp8Block)};
    return AddPart(spec, ScaleName(spec.name), "F8_E8M0", shape, source);
  }

  // A tensor of the new file, or one more part of a stack there.
  absl::Status AddPart(const TensorSpec& spec, const std::string& name, const std::string& dtype,
                       const std::vector<int64_t>& shape, const Source& source) {
    uint64_t bytes = static_cast<uint64_t>(ElementBytes(dtype));
    for (const int64_t n : shape) bytes *= static_cast<uint64_t>(n);
    const std::string own = options_.transformers ? TransformersName(name) : name;
    if (!options_.transformers || spec.kind != TensorSpec::Kind::kExpert) {
      targets_.push_back({{own, dtype, shape, bytes}, {source}});
      return absl::OkStatus();
    }
    if (source.dtype == "F8_E4M3" && spec.shape[0] % kFp8Block != 0) {
      return absl::InvalidArgumentError(fmt::format(
          "{}: tensor {} has {} rows, and a stack of FP8 experts needs a multiple of {}: choose "
          "other experts",
          checkpoint_.directory(), spec.name, spec.shape[0], kFp8Block));
    }
    const auto [at, fresh] = stacks_.emplace(own, targets_.size());
    if (fresh) {
      const int64_t parts = own.find("gate_up") != std::string::npos ? 2 : 1;
      targets_.push_back({{own, dtype, {to_.num_experts, parts * shape[0], shape[1]}, 0}, {}});
    }
    Target& stack = targets_[at->second];
    if (stack.head.dtype != dtype) {
      return absl::InvalidArgumentError(fmt::format(
          "{}: tensor {} is {} and others of its layer are {}, which cannot be stacked: "
          "choose one format for the experts",
          checkpoint_.directory(), spec.name, dtype, stack.head.dtype));
    }
    stack.head.bytes += bytes;
    stack.sources.push_back(source);
    return absl::OkStatus();
  }

  absl::Status WriteShard(const std::string& path, std::vector<const Target*> targets) {
    // Elements stay aligned in the file when the largest come first.
    std::stable_sort(targets.begin(), targets.end(), [](const Target* a, const Target* b) {
      return ElementBytes(a->head.dtype) > ElementBytes(b->head.dtype);
    });
    std::vector<TensorHead> heads;
    for (const Target* target : targets) heads.push_back(target->head);
    file_.Reset(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (!file_.valid()) return base::ErrnoStatus(errno, fmt::format("cannot write {}", path));
    path_ = path;
    RETURN_IF_ERROR(base::WriteAll(file_.get(), SafetensorsHead(heads), path));
    for (const Target* target : targets) {
      for (const Source& source : target->sources) RETURN_IF_ERROR(WriteSource(source));
    }
    return Flush();
  }

  absl::Status WriteSource(const Source& source) {
    if (source.part == Source::Part::kTable) return WriteTable(source);
    const TensorView& stored = *checkpoint_.Find(source.name);
    const bool kept = stored.dtype == source.dtype;
    if (kept && source.part == Source::Part::kValues) {
      const uint64_t row_bytes = stored.bytes / static_cast<uint64_t>(stored.shape[0]);
      return Append(stored.data, row_bytes * static_cast<uint64_t>(source.rows));
    }
    if (kept) {
      const std::string name = ScaleName(source.name);
      const TensorView& scales = *checkpoint_.Find(name);
      if (scales.dtype != "F32") return Append(scales.data, scales.bytes);
      ASSIGN_OR_RETURN(
          const std::vector<uint8_t> bytes,
          ScaleBytes(scales, fmt::format("{}: tensor {}", checkpoint_.directory(), name)));
      return Append(bytes.data(), bytes.size());
    }
    ASSIGN_OR_RETURN(const StoredRows rows, StoredRows::Of(checkpoint_, source.name));
    values_.resize(static_cast<size_t>(kFp8Block * rows.cols()));
    for (int64_t begin = 0; begin < source.rows; begin += kFp8Block) {
      const int64_t count = std::min(kFp8Block, source.rows - begin);
      for (int64_t i = 0; i < count; ++i)
        RETURN_IF_ERROR(rows.Read(begin + i, values_.data() + i * rows.cols()));
      RETURN_IF_ERROR(WriteRows(source, count, rows.cols()));
    }
    return absl::OkStatus();
  }

  // values_[rows, cols], which begin at a multiple of kFp8Block.
  absl::Status WriteRows(const Source& source, int64_t rows, int64_t cols) {
    const int64_t n = rows * cols;
    if (source.dtype == "F32")
      return Append(values_.data(), static_cast<size_t>(n) * sizeof(float));
    if (source.dtype == "BF16") {
      kernels::cpu::RoundToBf16(values_.data(), n);
      codes_.resize(static_cast<size_t>(n) * 2);
      for (size_t i = 0; i < static_cast<size_t>(n); ++i)
        std::memcpy(&codes_[2 * i], reinterpret_cast<const uint8_t*>(&values_[i]) + 2, 2);
      return Append(codes_.data(), codes_.size());
    }
    const bool fp4 = source.dtype == "I8";
    const int64_t row_codes = fp4 ? cols / 2 : cols;
    const int64_t row_scales = CeilDiv(cols, fp4 ? kFp4Block : kFp8Block);
    codes_.resize(static_cast<size_t>(rows * row_codes));
    scales_.resize(static_cast<size_t>(fp4 ? rows * row_scales : row_scales));
    for (int64_t row = 0; fp4 && row < rows; ++row) {
      kernels::cpu::EncodeFp4Row(values_.data() + row * cols, cols, codes_.data() + row * row_codes,
                                 scales_.data() + row * row_scales);
    }
    for (int64_t tile = 0; !fp4 && tile < row_scales; ++tile) {
      const int64_t at = tile * kFp8Block;
      scales_[static_cast<size_t>(tile)] =
          kernels::cpu::EncodeFp8Tile(values_.data() + at, cols, rows,
                                      std::min(kFp8Block, cols - at), codes_.data() + at, cols);
    }
    const std::vector<uint8_t>& part = source.part == Source::Part::kScales ? scales_ : codes_;
    return Append(part.data(), part.size());
  }

  absl::Status WriteTable(const Source& source) {
    const TensorView& stored = *checkpoint_.Find(source.name);
    const int64_t k = stored.shape[1];
    std::vector<int64_t> row(static_cast<size_t>(k));
    for (int64_t token = 0; token < source.rows; ++token) {
      const size_t row_bytes = row.size() * sizeof(int64_t);
      std::memcpy(row.data(), stored.data + static_cast<size_t>(token) * row_bytes, row_bytes);
      for (auto at = row.begin(); at != row.end(); ++at) {
        if (*at < 0 || *at >= from_.num_experts) {
          return absl::DataLossError(fmt::format("{}: tensor {}: row {} names expert {} of {}",
                                                 checkpoint_.directory(), source.name, token, *at,
                                                 from_.num_experts));
        }
        if (to_.num_experts == from_.num_experts) continue;
        *at %= to_.num_experts;
        while (std::find(row.begin(), at, *at) != at) *at = (*at + 1) % to_.num_experts;
      }
      RETURN_IF_ERROR(Append(row.data(), row_bytes));
    }
    return absl::OkStatus();
  }

  absl::Status Append(const void* data, uint64_t size) {
    const char* bytes = static_cast<const char*>(data);
    while (size > 0) {
      const size_t part = static_cast<size_t>(std::min<uint64_t>(size, kBufferBytes));
      buffer_.append(bytes, part);
      bytes += part;
      size -= part;
      if (buffer_.size() >= kBufferBytes) RETURN_IF_ERROR(Flush());
    }
    return absl::OkStatus();
  }

  absl::Status Flush() {
    RETURN_IF_ERROR(base::WriteAll(file_.get(), buffer_, path_));
    written_ += buffer_.size();
    buffer_.clear();
    if (options_.progress && !options_.progress(written_, bytes_))
      return absl::CancelledError("the conversion was stopped; nothing is left of it");
    return absl::OkStatus();
  }

  const Checkpoint& checkpoint_;
  const ModelConfig &from_, &to_;
  const ConvertOptions& options_;
  std::vector<Target> targets_;
  std::map<std::string, size_t> stacks_;  // by name: index of targets_
  uint64_t bytes_ = 0, written_ = 0;
  base::UniqueFd file_;
  std::string path_, buffer_;
  std::vector<float> values_;
  std::vector<uint8_t> codes_, scales_;
};

absl::Status CheckOptions(const Checkpoint& checkpoint, const ModelConfig& config,
                          const ConvertOptions& options) {
  if (options.matrices == StoredAs::kFp4)
    return absl::InvalidArgumentError("FP4 is a format of experts only: choose fp8 for the rest");
  if (options.experts_kept != 0 && (options.experts_kept < config.experts_per_token ||
                                    options.experts_kept > config.num_experts)) {
    return absl::InvalidArgumentError(
        fmt::format("{}: cannot keep {} experts; possible: {} (what a token uses) to {}",
                    checkpoint.directory(), options.experts_kept, config.experts_per_token,
                    config.num_experts));
  }
  return absl::OkStatus();
}

// The old file with what changed; `config` is made from it.
absl::StatusOr<std::string> NewConfig(const Checkpoint& checkpoint, const ModelConfig& from,
                                      const ConvertOptions& options, ModelConfig* config) {
  const std::string path = checkpoint.directory() + "/config.json";
  ASSIGN_OR_RETURN(const std::string text, base::ReadFile(path, kConfigBytesMax));
  Json json = Json::parse(text);
  if (options.experts_kept != 0) json["n_routed_experts"] = options.experts_kept;
  const int64_t mtp = options.mtp && !options.transformers ? checkpoint.MtpBlocks(from) : 0;
  json["num_nextn_predict_layers"] = mtp;
  Json& ratios = json["compress_ratios"];
  while (static_cast<int64_t>(ratios.size()) > from.num_layers + mtp)
    ratios.erase(ratios.size() - 1);

  auto stored = [&](StoredAs as, const char* example) {
    return as == StoredAs::kKeep ? checkpoint.Find(example)->dtype : std::string(DtypeOf(as));
  };
  const std::string matrices = stored(options.matrices, "layers.0.attn.wq_a.weight");
  const std::string experts = stored(options.experts, "layers.0.ffn.experts.0.w1.weight");
  if (Scaled(matrices) || Scaled(experts)) {
    json["quantization_config"] = {{"quant_method", "fp8"},
                                   {"fmt", "e4m3"},
                                   {"scale_fmt", "ue8m0"},
                                   {"weight_block_size", {kFp8Block, kFp8Block}},
                                   {"activation_scheme", "dynamic"}};
    json["expert_dtype"] = experts == "I8" ? "fp4" : experts == "F8_E4M3" ? "fp8" : "bf16";
  } else {
    json.erase("quantization_config");
    json.erase("expert_dtype");
  }
  json["torch_dtype"] = matrices == "F32" ? "float32" : "bfloat16";
  std::string made = json.dump(kConfigIndent) + "\n";
  ASSIGN_OR_RETURN(*config, ParseConfig(made, path));
  return made;
}

absl::Status CopyOthers(const std::string& from, const std::string& to) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(from, error)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || name == "config.json" || name.ends_with(".safetensors") ||
        name.ends_with(".safetensors.index.json")) {
      continue;
    }
    if (!fs::copy_file(entry.path(), fs::path(to) / name, error)) {
      return base::ErrnoStatus(error.value(), fmt::format("cannot copy {}/{}", from, name));
    }
  }
  if (error) return base::ErrnoStatus(error.value(), fmt::format("cannot list {}", from));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Converted> ConvertCheckpoint(const std::string& from, const std::string& to,
                                            const ConvertOptions& options) {
  if (::access(to.c_str(), F_OK) == 0) {
    return absl::AlreadyExistsError(
        fmt::format("{} is there already: remove it, or choose another name", to));
  }
  ASSIGN_OR_RETURN(const ModelConfig config, LoadConfig(from));
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(from));
  RETURN_IF_ERROR(checkpoint->CheckAgainst(config));
  RETURN_IF_ERROR(CheckOptions(*checkpoint, config, options));
  ModelConfig made;
  ASSIGN_OR_RETURN(const std::string config_text, NewConfig(*checkpoint, config, options, &made));
  Converter converter(*checkpoint, config, made, options);
  RETURN_IF_ERROR(converter.Plan());

  const base::TempPath partial(to + ".partial-");
  RETURN_IF_ERROR(base::MakeDirs(partial.path()));
  RETURN_IF_ERROR(CopyOthers(from, partial.path()));
  RETURN_IF_ERROR(base::WriteFileAtomic(partial.path() + "/config.json", config_text));
  ASSIGN_OR_RETURN(const Converted converted, converter.Write(partial.path()));
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> copy, Checkpoint::Open(partial.path()));
  RETURN_IF_ERROR(copy->CheckAgainst(made));
  const base::UniqueFd directory(
      ::open(partial.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (::syncfs(directory.get()) != 0)
    return base::ErrnoStatus(errno, fmt::format("cannot sync {}", partial.path()));
  if (::rename(partial.path().c_str(), to.c_str()) != 0)
    return base::ErrnoStatus(errno, fmt::format("cannot move {} to {}", partial.path(), to));
  return converted;
}

}  // namespace reprise::engine
