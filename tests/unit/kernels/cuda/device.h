// What the tests of CUDA kernels share: arrays on the device, random and poisoned values, and how
// far two results differ. The tests are built twice, against the CUDA runtime and against the
// machine of ../simt that runs kernels without a device.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "absl/status/status.h"

namespace reprise::kernels {

// An array on the device. What is read back waits for the device first.
template <typename T>
class Device {
 public:
  explicit Device(const std::vector<T>& values) : size_(values.size()) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), size_ * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  // Poisoned: every byte is 0xFF, so NaN or -1.
  explicit Device(size_t size) : Device(Poison(size)) {}
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* get() const { return data_; }
  std::vector<T> Read() const {
    std::vector<T> values(size_);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }

 private:
  static std::vector<T> Poison(size_t size) {
    std::vector<T> values(size);
    std::memset(static_cast<void*>(values.data()), 0xFF, size * sizeof(T));
    return values;
  }

  const size_t size_;
  T* data_ = nullptr;
};

template <typename T>
testing::AssertionResult SameBits(const std::vector<T>& got, const std::vector<T>& want) {
  if (got.size() != want.size())
    return testing::AssertionFailure() << got.size() << " values for " << want.size();
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::memcmp(&got[i], &want[i], sizeof(T)) == 0) continue;
    return testing::AssertionFailure() << "value " << i << " is " << +got[i] << " for " << +want[i];
  }
  return testing::AssertionSuccess();
}

// |got - want| / |want|; NaN or infinite where one value is.
inline double RelativeError(const std::vector<float>& got, const std::vector<float>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * static_cast<double>(got[i] - want[i]);
    norm += want[i] * static_cast<double>(want[i]);
  }
  return std::sqrt(difference / norm);
}

// float32 with another order of sums, and rounding to bfloat16 on top of it.
inline constexpr double kFloatError = 1e-5, kBf16Error = 5e-3;

class CudaKernels : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
      GTEST_SKIP() << "no CUDA device here";
  }
  std::vector<float> Random(size_t n, float scale = 1.0f) {
    std::normal_distribution<float> normal(0.0f, scale);
    std::vector<float> values(n);
    for (float& value : values) value = normal(random_);
    return values;
  }
  // In [0, below).
  int64_t RandomBelow(int64_t below) {
    return std::uniform_int_distribution<int64_t>(0, below - 1)(random_);
  }

  std::mt19937 random_{7};
};

#define ASSERT_STARTED(launch)              \
  do {                                      \
    const absl::Status started_ = (launch); \
    ASSERT_TRUE(started_.ok()) << started_; \
  } while (false)

}  // namespace reprise::kernels
