// The published checkpoints as their tensor tables describe them, written out here once more and
// independently of engine/inventory.cc, and files of full size that take no disk: the headers are
// real, the data is a hole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace reprise::engine {

struct PublishedModel {
  int64_t hidden, layers, heads, q_rank, groups, topk, experts, width, shards;
  double scale;
  bool pro = false;
  bool base = false;  // experts in FP8
  int64_t vocab = 129280, o_rank = 1024, active = 6;

  int64_t ratio(int64_t layer) const {
    if (layer >= layers) return 0;
    if (layer < 2) return pro ? 128 : 0;
    return layer % 2 == 0 ? 4 : 128;
  }

  nlohmann::json Config() const {
    std::vector<int64_t> ratios;
    for (int64_t layer = 0; layer <= layers; ++layer) ratios.push_back(ratio(layer));
    return {{"architectures", {"DeepseekV4ForCausalLM"}},
            {"model_type", "deepseek_v4"},
            {"vocab_size", vocab},
            {"hidden_size", hidden},
            {"num_hidden_layers", layers},
            {"num_attention_heads", heads},
            {"num_key_value_heads", 1},
            {"head_dim", 512},
            {"qk_rope_head_dim", 64},
            {"q_lora_rank", q_rank},
            {"o_lora_rank", o_rank},
            {"o_groups", groups},
            {"sliding_window", 128},
            {"compress_ratios", ratios},
            {"compress_rope_theta", 160000},
            {"rope_theta", 10000},
            {"rope_scaling",
             {{"type", "yarn"},
              {"factor", 16},
              {"original_max_position_embeddings", 65536},
              {"beta_fast", 32},
              {"beta_slow", 1}}},
            {"max_position_embeddings", 1048576},
            {"index_n_heads", 64},
            {"index_head_dim", 128},
            {"index_topk", topk},
            {"n_routed_experts", experts},
            {"n_shared_experts", 1},
            {"num_experts_per_tok", active},
            {"moe_intermediate_size", width},
            {"num_hash_layers", 3},
            {"scoring_func", "sqrtsoftplus"},
            {"topk_method", "noaux_tc"},
            {"norm_topk_prob", true},
            {"routed_scaling_factor", scale},
            {"swiglu_limit", 10.0},
            {"hidden_act", "silu"},
            {"hc_mult", 4},
            {"hc_sinkhorn_iters", 20},
            {"hc_eps", 1e-6},
            {"rms_norm_eps", 1e-6},
            {"num_nextn_predict_layers", 1},
            {"bos_token_id", 0},
            {"eos_token_id", 1},
            {"tie_word_embeddings", false},
            {"attention_bias", false}};
  }
};

inline PublishedModel Flash() { return {4096, 43, 64, 1024, 8, 512, 256, 2048, 46, 1.5}; }
inline PublishedModel Pro() { return {7168, 61, 128, 1536, 16, 1024, 384, 3072, 64, 2.5, true}; }

struct PublishedTensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
};

inline std::vector<PublishedTensor> Tensors(const PublishedModel& m) {
  std::vector<PublishedTensor> out;
  auto add = [&](std::string name, const char* dtype, std::vector<int64_t> shape) {
    out.push_back({std::move(name), dtype, std::move(shape)});
  };
  auto fp8 = [&](const std::string& name, int64_t rows, int64_t columns) {
    add(name + ".weight", "F8_E4M3", {rows, columns});
    add(name + ".scale", "F8_E8M0", {rows / 128, columns / 128});
  };
  auto fp4 = [&](const std::string& name, int64_t rows, int64_t columns) {
    if (m.base) return fp8(name, rows, columns);
    add(name + ".weight", "I8", {rows, columns / 2});
    add(name + ".scale", "F8_E8M0", {rows, columns / 32});
  };
  auto head = [&](const std::string& prefix) {
    add(prefix + "norm.weight", "BF16", {m.hidden});
    add(prefix + "hc_head_fn", "F32", {4, 4 * m.hidden});
    add(prefix + "hc_head_base", "F32", {4});
    add(prefix + "hc_head_scale", "F32", {1});
  };
  add("embed.weight", "BF16", {m.vocab, m.hidden});
  add("head.weight", "BF16", {m.vocab, m.hidden});
  head("");
  for (int64_t layer = 0; layer <= m.layers; ++layer) {
    const bool mtp = layer == m.layers;
    const std::string p = mtp ? "mtp.0." : fmt::format("layers.{}.", layer);
    if (mtp) {
      fp8(p + "e_proj", m.hidden, m.hidden);
      fp8(p + "h_proj", m.hidden, m.hidden);
      add(p + "enorm.weight", "BF16", {m.hidden});
      add(p + "hnorm.weight", "BF16", {m.hidden});
      head(p);
    }
    for (const char* part : {"hc_attn_", "hc_ffn_"}) {
      add(p + part + "fn", "F32", {24, 4 * m.hidden});
      add(p + part + "base", "F32", {24});
      add(p + part + "scale", "F32", {3});
    }
    add(p + "attn_norm.weight", "BF16", {m.hidden});
    add(p + "ffn_norm.weight", "BF16", {m.hidden});
    const std::string a = p + "attn.";
    fp8(a + "wq_a", m.q_rank, m.hidden);
    add(a + "q_norm.weight", "BF16", {m.q_rank});
    fp8(a + "wq_b", m.heads * 512, m.q_rank);
    fp8(a + "wkv", 512, m.hidden);
    add(a + "kv_norm.weight", "BF16", {512});
    add(a + "attn_sink", "F32", {m.heads});
    fp8(a + "wo_a", m.groups * m.o_rank, m.heads * 512 / m.groups);
    fp8(a + "wo_b", m.hidden, m.groups * m.o_rank);
    const int64_t ratio = m.ratio(layer), c = ratio == 4 ? 2 : 1;
    auto compressor = [&](const std::string& prefix, int64_t width) {
      add(prefix + "ape", "F32", {ratio, c * width});
      add(prefix + "wkv.weight", "BF16", {c * width, m.hidden});
      add(prefix + "wgate.weight", "BF16", {c * width, m.hidden});
      add(prefix + "norm.weight", "BF16", {width});
    };
    if (ratio > 0) compressor(a + "compressor.", 512);
    if (ratio == 4) {
      fp8(a + "indexer.wq_b", 64 * 128, m.q_rank);
      add(a + "indexer.weights_proj.weight", "BF16", {64, m.hidden});
      compressor(a + "indexer.compressor.", 128);
    }
    const std::string f = p + "ffn.";
    add(f + "gate.weight", "BF16", {m.experts, m.hidden});
    if (layer < 3) {
      add(f + "gate.tid2eid", "I64", {m.vocab, m.active});
    } else {
      add(f + "gate.bias", "F32", {m.experts});
    }
    for (const char* w : {"w1", "w3"}) fp8(f + "shared_experts." + w, m.width, m.hidden);
    fp8(f + "shared_experts.w2", m.hidden, m.width);
    for (int64_t e = 0; e < m.experts; ++e) {
      const std::string expert = fmt::format("{}experts.{}.", f, e);
      fp4(expert + "w1", m.width, m.hidden);
      fp4(expert + "w3", m.width, m.hidden);
      fp4(expert + "w2", m.hidden, m.width);
    }
  }
  return out;
}

// config.json, the index and `shards` files of full size.
inline void WriteSparse(const PublishedModel& model, const std::vector<PublishedTensor>& tensors,
                        const std::string& directory) {
  using Json = nlohmann::json;
  std::ofstream(directory + "/config.json") << model.Config();
  Json index = {{"metadata", Json::object()}, {"weight_map", Json::object()}};
  const size_t shards = static_cast<size_t>(model.shards);
  for (size_t shard = 0; shard < shards; ++shard) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, shards);
    Json header = Json::object();
    uint64_t at = 0;
    for (size_t i = tensors.size() * shard / shards; i < tensors.size() * (shard + 1) / shards;
         ++i) {
      const PublishedTensor& tensor = tensors[i];
      uint64_t bytes = tensor.dtype == "I64" || tensor.dtype == "F64"    ? 8
                       : tensor.dtype == "F32"                           ? 4
                       : tensor.dtype == "BF16" || tensor.dtype == "F16" ? 2
                                                                         : 1;
      for (int64_t dimension : tensor.shape) bytes *= static_cast<uint64_t>(dimension);
      header[tensor.name] = {
          {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {at, at + bytes}}};
      index["weight_map"][tensor.name] = name;
      at += bytes;
    }
    std::string text = header.dump();
    text.append((8 - text.size() % 8) % 8, ' ');  // as the hub's files, so that data is aligned
    const uint64_t length = text.size();
    const std::string path = directory + "/" + name;
    std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(&length), 8) << text;
    std::filesystem::resize_file(path, 8 + length + at);
  }
  std::ofstream(directory + "/model.safetensors.index.json") << index;
}

}  // namespace reprise::engine
