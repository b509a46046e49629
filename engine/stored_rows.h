// Rows of a checkpoint's tensor as float32, whatever it is stored as.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint.h"
#include "kernels/cpu/dot.h"

namespace reprise::engine {

// Scales stored as F32, as the exponent bytes that F8_E8M0 holds. DATA_LOSS begins with `where` and
// names the first that is no power of two.
absl::StatusOr<std::vector<uint8_t>> ScaleBytes(const TensorView& scales, const std::string& where);

class StoredRows {
 public:
  // REQUIRES: the checkpoint was checked, and outlives this. A vector has one row for each element.
  // DATA_LOSS as BindWeights says of scales.
  static absl::StatusOr<StoredRows> Of(const Checkpoint& checkpoint, const std::string& name);
  StoredRows(StoredRows&&) = default;

  int64_t rows() const { return weight_.rows; }
  int64_t cols() const { return weight_.cols; }
  // Widens row `row` to out[cols()]. DATA_LOSS for a value that is not finite.
  absl::Status Read(int64_t row, float* out) const;

 private:
  StoredRows() = default;

  std::string where_;
  kernels::cpu::Weight weight_;
  std::vector<uint8_t> aligned_, scales_;  // copies, where the file's bytes do not serve
};

}  // namespace reprise::engine
