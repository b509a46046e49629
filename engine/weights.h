// The parameters of a loaded model, as the forward pass reads them: matrices stay in the
// checkpoint's mapping in their stored type, small vectors are widened to float32. Shapes are [out,
// in], row major, as in the checkpoint.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint.h"
#include "engine/config.h"
#include "kernels/cpu/dot.h"

namespace reprise::engine {

using Matrix = kernels::cpu::Weight;
using Vector = std::vector<float>;

struct HyperConnection {
  Matrix fn;     // [(2 + P) * P, P * D]
  Vector base;   // [(2 + P) * P]
  Vector scale;  // [3]
};

struct Compressor {
  Matrix wkv, wgate;  // [columns, D]
  Vector ape;         // [ratio, columns]
  Vector norm;        // [width]
};

struct AttentionWeights {
  Matrix wq_a, wq_b, wkv, wo_a, wo_b;
  Vector q_norm, kv_norm, sink;
  Compressor compressor;             // kCsa and kHca
  Compressor index_compressor;       // kCsa
  Matrix index_wq_b, index_weights;  // kCsa
};

struct Expert {
  Matrix w1, w2, w3;  // gate, down, up
};

struct ExpertWeights {
  Matrix gate;                     // [E, D]
  Vector bias;                     // [E], learned layers
  const int64_t* table = nullptr;  // [V, K], hash layers
  std::vector<Expert> routed;      // [E]
  Expert shared;
};

struct LayerWeights {
  HyperConnection hc_attn, hc_ffn;
  Vector attn_norm, ffn_norm;
  AttentionWeights attn;
  ExpertWeights ffn;
};

struct ModelWeights {
  Matrix embed, head;  // [V, D]
  Vector norm;
  Matrix hc_head_fn;  // [P, P * D]
  Vector hc_head_base;
  float hc_head_scale = 0;
  std::vector<LayerWeights> layers;
  // Tensors whose bytes were not aligned in their file.
  std::vector<std::unique_ptr<uint8_t[]>> copies;
};

// REQUIRES: checkpoint.CheckAgainst(config) is OK. The result points into the checkpoint.
// INVALID_ARGUMENT when a hash table names an expert that does not exist.
absl::StatusOr<ModelWeights> BindWeights(const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace reprise::engine
