// Random matrices in each stored format, on the host and on the device.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/weight.h"
#include "tests/unit/kernels/cuda/device.h"

namespace reprise::kernels {

class RandomWeight {
 public:
  RandomWeight(WeightType type, int64_t rows, int64_t cols, std::mt19937& random)
      : type_(type),
        rows_(rows),
        cols_(cols),
        data_(Bytes(type, rows, cols, random)),
        scales_(Scales(type, rows, cols, random)),
        device_data_(data_),
        device_scales_(scales_) {}

  Weight host() const { return Make(data_.data(), scales_.data()); }
  Weight device() const { return Make(device_data_.get(), device_scales_.get()); }

 private:
  static std::vector<uint8_t> Bytes(WeightType type, int64_t rows, int64_t cols,
                                    std::mt19937& random) {
    std::normal_distribution<float> normal;
    const size_t count = static_cast<size_t>(rows * cols);
    std::vector<uint8_t> bytes(type == WeightType::kF32    ? count * 4
                               : type == WeightType::kBf16 ? count * 2
                               : type == WeightType::kFp8  ? count
                                                           : count / 2);
    for (size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<uint8_t>(random());
      if (type == WeightType::kFp8 && (bytes[i] & 0x7F) == 0x7F) bytes[i] = 0;
    }
    if (type == WeightType::kFp8 || type == WeightType::kFp4) return bytes;
    for (size_t i = 0; i < count; ++i) {
      const float value = normal(random);
      // A bfloat16 is the upper half of a float32.
      const char* from =
          reinterpret_cast<const char*>(&value) + (type == WeightType::kBf16 ? 2 : 0);
      const size_t size = type == WeightType::kBf16 ? 2 : 4;
      std::memcpy(bytes.data() + i * size, from, size);
    }
    return bytes;
  }
  static std::vector<uint8_t> Scales(WeightType type, int64_t rows, int64_t cols,
                                     std::mt19937& random) {
    std::vector<uint8_t> scales(static_cast<size_t>(
        type == WeightType::kFp4
            ? rows * ScaleCols(type, cols)
            : (rows + kFp8ScaleBlock - 1) / kFp8ScaleBlock * ScaleCols(type, cols)));
    for (uint8_t& scale : scales) scale = static_cast<uint8_t>(120 + random() % 12);
    return scales;
  }
  static int64_t ScaleCols(WeightType type, int64_t cols) {
    const int64_t block = type == WeightType::kFp4 ? kFp4ScaleBlock : kFp8ScaleBlock;
    return (cols + block - 1) / block;
  }
  Weight Make(const uint8_t* data, const uint8_t* scales) const {
    Weight w;
    w.data = data;
    w.type = type_;
    w.rows = rows_;
    w.cols = cols_;
    w.scales = scales;
    w.scale_cols = ScaleCols(type_, cols_);
    return w;
  }

  const WeightType type_;
  const int64_t rows_, cols_;
  const std::vector<uint8_t> data_, scales_;
  const Device<uint8_t> device_data_, device_scales_;
};

}  // namespace reprise::kernels
