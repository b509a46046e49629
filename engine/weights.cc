#include "engine/weights.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "engine/stored_rows.h"
#include "kernels/cpu/matmul.h"

namespace reprise::engine {
namespace {

using kernels::cpu::WeightType;

class Binder {
 public:
  Binder(const Checkpoint& checkpoint, const ModelConfig& config)
      : checkpoint_(checkpoint), c_(config) {}

  absl::StatusOr<ModelWeights> Bind() {
    model_.embed = MatrixOf("embed.weight");
    model_.head = MatrixOf("head.weight");
    model_.output = HeadOf("");
    for (int64_t layer = 0; layer < c_.num_layers; ++layer) {
      ASSIGN_OR_RETURN(LayerWeights weights, Layer(layer, fmt::format("layers.{}.", layer)));
      model_.layers.push_back(std::move(weights));
    }
    for (int64_t block = 0; block < checkpoint_.MtpBlocks(c_); ++block) {
      const std::string prefix = fmt::format("mtp.{}.", block);
      MtpWeights mtp;
      mtp.enorm = VectorOf(prefix + "enorm.weight");
      mtp.hnorm = VectorOf(prefix + "hnorm.weight");
      mtp.e_proj = MatrixOf(prefix + "e_proj.weight");
      mtp.h_proj = MatrixOf(prefix + "h_proj.weight");
      ASSIGN_OR_RETURN(mtp.layer, Layer(c_.num_layers + block, prefix));
      mtp.head = HeadOf(prefix);
      model_.mtp.push_back(std::move(mtp));
    }
    RETURN_IF_ERROR(status_);
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
    matrix.cols = view.shape.back();
    matrix.rows = 1;
    for (size_t i = 0; i + 1 < view.shape.size(); ++i) matrix.rows *= view.shape[i];
    if (view.dtype == "BF16") {
      matrix.type = WeightType::kBf16;
      matrix.data = Bytes(view, sizeof(uint16_t));
    } else if (view.dtype == "F32") {
      matrix.type = WeightType::kF32;
      matrix.data = Bytes(view, sizeof(float));
    } else {
      const bool fp4 = view.dtype == "I8";
      matrix.type = fp4 ? WeightType::kFp4 : WeightType::kFp8;
      if (fp4) matrix.cols *= 2;
      matrix.data = view.data;
      if (!fp4) CheckFp8(name, view);
      const std::string scale_name = ScaleName(name);
      matrix.scales = Scales(scale_name, *checkpoint_.Find(scale_name));
      matrix.scale_cols = checkpoint_.Find(scale_name)->shape[1];
    }
    return matrix;
  }

  void Fail(const std::string& name, uint64_t element, std::string_view what) {
    if (!status_.ok()) return;
    status_ = absl::DataLossError(fmt::format("{}: tensor {}: element {} is {}",
                                              checkpoint_.directory(), name, element, what));
  }

  void CheckFp8(const std::string& name, const TensorView& view) {
    constexpr size_t kStride = 1 << 16;  // looked at without a branch
    const absl::Span<const uint8_t> sample = checkpoint_.Sample(name, view);
    for (size_t begin = 0; begin < sample.size(); begin += kStride) {
      const absl::Span<const uint8_t> part = sample.subspan(begin, kStride);
      uint8_t found = 0;
      for (const uint8_t code : part) found |= (code & 0x7F) == 0x7F;
      if (found == 0) continue;
      size_t i = begin;
      while ((sample[i] & 0x7F) != 0x7F) ++i;
      return Fail(name, static_cast<uint64_t>(sample.data() + i - view.data),
                  "not a number (0x7F or 0xFF as F8_E4M3)");
    }
  }

  // Scales as exponent bytes; F32 scales of re-saved files must be powers of two.
  const uint8_t* Scales(const std::string& name, const TensorView& view) {
    const uint8_t* bytes = view.data;
    uint64_t count = view.bytes;
    if (view.dtype == "F32") {
      const auto scales =
          ScaleBytes(view, fmt::format("{}: tensor {}", checkpoint_.directory(), name));
      if (!scales.ok()) {
        status_.Update(scales.status());
        return bytes;
      }
      count = scales->size();
      auto copy = std::make_unique<uint8_t[]>(count);
      std::copy(scales->begin(), scales->end(), copy.get());
      model_.copies.push_back(std::move(copy));
      bytes = model_.copies.back().get();
    }
    const absl::Span<const uint8_t> sample =
        bytes == view.data ? checkpoint_.Sample(name, view) : absl::MakeConstSpan(bytes, count);
    uint8_t largest = 0;
    for (const uint8_t byte : sample) largest = std::max(largest, byte);
    if (largest > kernels::cpu::kScaleByteMax) {
      const auto found = std::find(sample.begin(), sample.end(), largest);
      const uint64_t i = static_cast<uint64_t>(&*found - bytes);
      Fail(name, i,
           fmt::format("scale byte {}; possible: 0 to {}", largest, kernels::cpu::kScaleByteMax));
    }
    return bytes;
  }

  Vector VectorOf(const std::string& name) {
    const Matrix matrix = MatrixOf(name);  // BF16 or F32, by the inventory
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

  HeadWeights HeadOf(const std::string& prefix) {
    return {MatrixOf(prefix + "hc_head_fn"), VectorOf(prefix + "hc_head_base"),
            VectorOf(prefix + "hc_head_scale")[0], VectorOf(prefix + "norm.weight")};
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
  absl::Status status_;  // of the data that was looked at
};

}  // namespace

absl::StatusOr<ModelWeights> BindWeights(const Checkpoint& checkpoint, const ModelConfig& config) {
  return Binder(checkpoint, config).Bind();
}

}  // namespace reprise::engine
