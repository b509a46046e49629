// The parameters of a loaded model, as the forward pass reads them: matrices stay in the
// checkpoint's mapping in their stored type (BF16, F32, FP8, FP4), small vectors are widened to
// float32. Shapes are [out, in], row major, as in the checkpoint.
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

// Its inputs are quantised too where the model runs as it was trained.
inline bool Quantised(const Matrix& w) {
  return w.type == kernels::cpu::WeightType::kFp8 || w.type == kernels::cpu::WeightType::kFp4;
}

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

// How the residual streams become the input of the output matrix.
struct HeadWeights {
  Matrix hc_fn;  // [P, P * D]
  Vector hc_base;
  float hc_scale = 0;
  Vector norm;
};

// A block that guesses the token after the next from the residual and the next token.
struct MtpWeights {
  Vector enorm, hnorm;
  Matrix e_proj, h_proj;  // [D, D]
  LayerWeights layer;
  HeadWeights head;
};

struct ModelWeights {
  Matrix embed, head;  // [V, D]
  HeadWeights output;
  std::vector<LayerWeights> layers;
  std::vector<MtpWeights> mtp;  // those that the checkpoint has
  // Tensors whose bytes were not aligned in their file.
  std::vector<std::unique_ptr<uint8_t[]>> copies;
};

// REQUIRES: checkpoint.CheckAgainst(config) is OK. The result points into the checkpoint.
// INVALID_ARGUMENT when a hash table names an expert that does not exist; DATA_LOSS when an FP8
// value or a scale is none: NaN, or a scale outside of what float32 can multiply by. FP8 values and
// scales are looked at as far as Checkpoint::Sample goes.
absl::StatusOr<ModelWeights> BindWeights(const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace reprise::engine
