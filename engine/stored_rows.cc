#include "engine/stored_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "kernels/cpu/matmul.h"

namespace reprise::engine {

using kernels::cpu::WeightType;

absl::StatusOr<std::vector<uint8_t>> ScaleBytes(const TensorView& scales,
                                                const std::string& where) {
  std::vector<uint8_t> bytes(scales.bytes / sizeof(float));
  for (size_t i = 0; i < bytes.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, scales.data + i * sizeof(float), sizeof(bits));
    if ((bits & 0x807FFFFF) != 0) {
      return absl::DataLossError(fmt::format(
          "{}: element {} is no power of two; this engine needs UE8M0 scales", where, i));
    }
    bytes[i] = static_cast<uint8_t>(bits >> 23);
  }
  return bytes;
}

absl::StatusOr<StoredRows> StoredRows::Of(const Checkpoint& checkpoint, const std::string& name) {
  const TensorView& view = *checkpoint.Find(name);
  StoredRows rows;
  rows.where_ = fmt::format("{}: tensor {}", checkpoint.directory(), name);
  kernels::cpu::Weight& weight = rows.weight_;
  weight.rows = view.shape[0];
  weight.cols = view.shape.size() > 1 ? view.shape[1] : 1;
  weight.data = view.data;
  const bool wide = view.dtype == "F32";
  if (wide || view.dtype == "BF16") {
    weight.type = wide ? WeightType::kF32 : WeightType::kBf16;
    if (reinterpret_cast<uintptr_t>(view.data) % (wide ? sizeof(float) : sizeof(uint16_t)) != 0) {
      rows.aligned_.assign(view.data, view.data + view.bytes);
      weight.data = rows.aligned_.data();
    }
    return rows;
  }
  const bool fp4 = view.dtype == "I8";
  weight.type = fp4 ? WeightType::kFp4 : WeightType::kFp8;
  if (fp4) weight.cols *= 2;
  const TensorView& scales = *checkpoint.Find(ScaleName(name));
  weight.scale_cols = scales.shape[1];
  if (scales.dtype == "F32") {
    ASSIGN_OR_RETURN(rows.scales_, ScaleBytes(scales, rows.where_));
  } else {
    rows.scales_.assign(scales.data, scales.data + scales.bytes);
  }
  weight.scales = rows.scales_.data();
  const auto largest = std::max_element(rows.scales_.begin(), rows.scales_.end());
  if (largest != rows.scales_.end() && *largest > kernels::cpu::kScaleByteMax) {
    return absl::DataLossError(fmt::format("{}: scale byte {}; possible: 0 to {}", rows.where_,
                                           *largest, kernels::cpu::kScaleByteMax));
  }
  return rows;
}

absl::Status StoredRows::Read(int64_t row, float* out) const {
  // The FP8 kernels take the two codes of NaN for numbers.
  bool finite = true;
  if (weight_.type == WeightType::kFp8) {
    const uint8_t* codes = static_cast<const uint8_t*>(weight_.data) + row * weight_.cols;
    for (int64_t i = 0; i < weight_.cols; ++i) finite &= (codes[i] & 0x7F) != 0x7F;
  }
  kernels::cpu::CopyRow(weight_, row, out);
  for (int64_t i = 0; i < weight_.cols; ++i) finite &= std::isfinite(out[i]);
  if (finite) return absl::OkStatus();
  return absl::DataLossError(fmt::format("{}: row {} has a value that is not finite", where_, row));
}

}  // namespace reprise::engine
