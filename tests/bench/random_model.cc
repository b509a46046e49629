#include "tests/bench/random_model.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/status_macros.h"
#include "engine/config.h"
#include "engine/convert.h"
#include "engine/inventory.h"
#include "engine/safetensors.h"

namespace reprise::engine {
namespace {

// V4-Flash's shape at an eighth of its width: 11 layers of all three kinds, two hashed.
nlohmann::json Shape(nlohmann::json config) {
  config.merge_patch({{"vocab_size", 16384},
                      {"hidden_size", 512},
                      {"num_hidden_layers", 11},
                      {"num_attention_heads", 8},
                      {"head_dim", 128},
                      {"qk_rope_head_dim", 32},
                      {"q_lora_rank", 256},
                      {"o_lora_rank", 128},
                      {"o_groups", 2},
                      {"sliding_window", 128},
                      {"index_n_heads", 8},
                      {"index_head_dim", 64},
                      {"index_topk", 128},
                      {"n_routed_experts", 32},
                      {"num_experts_per_tok", 6},
                      {"moe_intermediate_size", 128},
                      {"num_hash_layers", 2}});
  config["compress_ratios"] = {0, 0, 4, 128, 4, 128, 4, 128, 4, 128, 4};
  return config;
}

class Writer {
 public:
  absl::Status Write(const ModelConfig& config, const std::string& path) {
    std::vector<TensorHead> heads;
    const std::vector<TensorSpec> specs = TensorInventory(config);
    for (const bool tables : {true, false}) {  // the widest elements first
      for (const TensorSpec& spec : specs) {
        if ((spec.kind == TensorSpec::Kind::kTable) != tables) continue;
        uint64_t count = 1;
        for (const int64_t n : spec.shape) count *= static_cast<uint64_t>(n);
        heads.push_back({spec.name, tables ? "I64" : "BF16", spec.shape, count * (tables ? 8 : 2)});
      }
    }
    std::ofstream file(path, std::ios::binary);
    file << SafetensorsHead(heads);
    for (const TensorHead& head : heads) {
      const std::string data = head.dtype == "I64" ? Table(config, head) : Values(head);
      file.write(data.data(), static_cast<std::streamsize>(data.size()));
    }
    file.close();
    if (!file) return absl::ResourceExhaustedError(fmt::format("cannot write {}", path));
    return absl::OkStatus();
  }

 private:
  std::string Table(const ModelConfig& config, const TensorHead& head) {
    std::vector<int64_t> ids;
    for (int64_t token = 0; token < head.shape[0]; ++token) {
      const int64_t first = static_cast<int64_t>(random_() % 1024);
      for (int64_t k = 0; k < head.shape[1]; ++k) ids.push_back((first + k) % config.num_experts);
    }
    return std::string(reinterpret_cast<const char*>(ids.data()), head.bytes);
  }

  // Matrices keep the size of what goes through them; norms are 1, gates and biases small.
  std::string Values(const TensorHead& head) {
    const bool norm = head.name.find("norm") != std::string::npos;
    const double width = static_cast<double>(head.shape.back());
    const double spread = head.shape.size() == 1 ? 0.1 : 1 / std::sqrt(width);
    std::string out(head.bytes, '\0');
    for (size_t at = 0; at < out.size(); at += 2) {
      // Uniform, of unit variance.
      const double unit = (static_cast<double>(random_()) / 0x1p32 - 0.5) * std::sqrt(12.0);
      const float value = norm ? 1.0f : static_cast<float>(unit * spread);
      const uint32_t bits = std::bit_cast<uint32_t>(value);
      out[at] = static_cast<char>(bits >> 16);
      out[at + 1] = static_cast<char>(bits >> 24);
    }
    return out;
  }

  std::mt19937 random_{4};
};

}  // namespace

absl::Status WriteRandomModel(const std::string& directory) {
  namespace fs = std::filesystem;
  const std::string tiny = std::string(REPRISE_SOURCE_DIR) + "/examples/tiny-v4";
  const base::TempPath official(directory + ".official-");
  RETURN_IF_ERROR(base::MakeDirs(official.path()));
  ASSIGN_OR_RETURN(const std::string text, base::ReadFile(tiny + "/config.json"));
  const std::string config = Shape(nlohmann::json::parse(text)).dump(2);
  RETURN_IF_ERROR(base::WriteFileAtomic(official.path() + "/config.json", config));
  fs::copy_file(tiny + "/tokenizer.json", official.path() + "/tokenizer.json");
  ASSIGN_OR_RETURN(const ModelConfig parsed, ParseConfig(config, "the random model's config"));
  RETURN_IF_ERROR(Writer().Write(parsed, official.path() + "/model.safetensors"));
  return ConvertCheckpoint(official.path(), directory, {.transformers = true}).status();
}

}  // namespace reprise::engine
