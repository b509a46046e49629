#include "engine/weights.h"

#include <cstring>
#include <string>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "kernels/cpu/matmul.h"

namespace reprise::engine {
namespace {

class Binder {
 public:
  Binder(const Checkpoint& checkpoint, const ModelConfig& config)
      : checkpoint_(checkpoint), c_(config) {}

  absl::StatusOr<ModelWeights> Bind() {
    model_.embed = MatrixOf("embed.weight");
    model_.head = MatrixOf("head.weight");
    model_.norm = VectorOf("norm.weight");
    model_.hc_head_fn = MatrixOf("hc_head_fn");
    model_.hc_head_base = VectorOf("hc_head_base");
    model_.hc_head_scale = VectorOf("hc_head_scale")[0];
    for (int64_t layer = 0; layer < c_.num_layers; ++layer) {
      ASSIGN_OR_RETURN(LayerWeights weights, Layer(layer, fmt::format("layers.{}.", layer)));
      model_.layers.push_back(std::move(weights));
    }
    return std::move(model_);
  }

 private:
  // The tensor's bytes, aligned to its element.
  const void* Bytes(const TensorView& view, size_t element) {
    if (reinterpret_cast<uintptr_t>(view.data) % element == 0) return view.data;
    model_.copies.push_back(std::make_unique<uint8_t[]>(view.bytes));
    std::memcpy(model_.copies.back().get(), view.data, view.bytes);
    return model_.copies.back().get();
  }

  Matrix MatrixOf(const std::string& name) {
    const TensorView& view = *checkpoint_.Find(name);
    Matrix matrix;
    const bool bf16 = view.dtype == "BF16";
    matrix.type = bf16 ? kernels::cpu::WeightType::kBf16 : kernels::cpu::WeightType::kF32;
    matrix.data = Bytes(view, bf16 ? sizeof(uint16_t) : sizeof(float));
    matrix.cols = view.shape.back();
    matrix.rows = 1;
    for (size_t i = 0; i + 1 < view.shape.size(); ++i) matrix.rows *= view.shape[i];
    return matrix;
  }

  Vector VectorOf(const std::string& name) {
    const Matrix matrix = MatrixOf(name);
    Vector out(static_cast<size_t>(matrix.rows * matrix.cols));
    for (int64_t row = 0; row < matrix.rows; ++row)
      kernels::cpu::CopyRow(matrix, row, out.data() + row * matrix.cols);
    return out;
  }

  absl::StatusOr<LayerWeights> Layer(int64_t layer, const std::string& prefix) {
    LayerWeights weights;
    weights.hc_attn = HyperConnectionOf(prefix + "hc_attn_");
    weights.hc_ffn = HyperConnectionOf(prefix + "hc_ffn_");
    weights.attn_norm = VectorOf(prefix + "attn_norm.weight");
    weights.ffn_norm = VectorOf(prefix + "ffn_norm.weight");
    weights.attn = Attention(layer, prefix + "attn.");
    ASSIGN_OR_RETURN(weights.ffn, Experts(layer, prefix + "ffn."));
    return weights;
  }

  HyperConnection HyperConnectionOf(const std::string& prefix) {
    return {MatrixOf(prefix + "fn"), VectorOf(prefix + "base"), VectorOf(prefix + "scale")};
  }

  AttentionWeights Attention(int64_t layer, const std::string& prefix) {
    AttentionWeights w;
    w.wq_a = MatrixOf(prefix + "wq_a.weight");
    w.wq_b = MatrixOf(prefix + "wq_b.weight");
    w.wkv = MatrixOf(prefix + "wkv.weight");
    w.wo_a = MatrixOf(prefix + "wo_a.weight");
    w.wo_b = MatrixOf(prefix + "wo_b.weight");
    w.q_norm = VectorOf(prefix + "q_norm.weight");
    w.kv_norm = VectorOf(prefix + "kv_norm.weight");
    w.sink = VectorOf(prefix + "attn_sink");
    if (c_.kind(layer) != LayerKind::kWindow) w.compressor = CompressorOf(prefix + "compressor.");
    if (c_.kind(layer) == LayerKind::kCsa) {
      w.index_compressor = CompressorOf(prefix + "indexer.compressor.");
      w.index_wq_b = MatrixOf(prefix + "indexer.wq_b.weight");
      w.index_weights = MatrixOf(prefix + "indexer.weights_proj.weight");
    }
    return w;
  }

  Compressor CompressorOf(const std::string& prefix) {
    return {MatrixOf(prefix + "wkv.weight"), MatrixOf(prefix + "wgate.weight"),
            VectorOf(prefix + "ape"), VectorOf(prefix + "norm.weight")};
  }

  Expert ExpertOf(const std::string& prefix) {
    return {MatrixOf(prefix + "w1.weight"), MatrixOf(prefix + "w2.weight"),
            MatrixOf(prefix + "w3.weight")};
  }

  absl::StatusOr<ExpertWeights> Experts(int64_t layer, const std::string& prefix) {
    ExpertWeights w;
    w.gate = MatrixOf(prefix + "gate.weight");
    if (c_.hashed(layer)) {
      const std::string name = prefix + "gate.tid2eid";
      w.table = static_cast<const int64_t*>(Bytes(*checkpoint_.Find(name), sizeof(int64_t)));
      for (int64_t i = 0; i < c_.vocab_size * c_.experts_per_token; ++i) {
        if (w.table[i] >= 0 && w.table[i] < c_.num_experts) continue;
        return absl::InvalidArgumentError(
            fmt::format("{}: tensor {}: element {} is expert {} of {}", checkpoint_.directory(),
                        name, i, w.table[i], c_.num_experts));
      }
    } else {
      w.bias = VectorOf(prefix + "gate.bias");
    }
    for (int64_t e = 0; e < c_.num_experts; ++e)
      w.routed.push_back(ExpertOf(fmt::format("{}experts.{}.", prefix, e)));
    w.shared = ExpertOf(prefix + "shared_experts.");
    return w;
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& c_;
  ModelWeights model_;
};

}  // namespace

absl::StatusOr<ModelWeights> BindWeights(const Checkpoint& checkpoint, const ModelConfig& config) {
  return Binder(checkpoint, config).Bind();
}

}  // namespace reprise::engine
