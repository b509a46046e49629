// The CUDA kernels against the CPU's over random shapes, with poisoned outputs, and each row's bits
// alone against its bits in a batch. Skipped where there is no device.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/mhc.h"
#include "kernels/cpu/rmsnorm.h"
#include "kernels/cpu/router.h"
#include "kernels/cpu/swiglu.h"
#include "kernels/cuda/mhc.h"
#include "kernels/cuda/rmsnorm.h"
#include "kernels/cuda/router.h"
#include "kernels/cuda/swiglu.h"

namespace reprise::kernels {
namespace {

constexpr double kRelative =
    1e-5;  // of the norm: float32 with another order of sums and another exp

// An array on the device. What is read back waits for the device first.
template <typename T>
class Device {
 public:
  explicit Device(const std::vector<T>& values) : size_(values.size()) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), size_ * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* get() { return data_; }
  std::vector<T> Read() const {
    std::vector<T> values(size_);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }

 private:
  size_t size_;
  T* data_ = nullptr;
};

std::vector<float> Poison(size_t n) {
  return std::vector<float>(n, std::numeric_limits<float>::quiet_NaN());
}

double RelativeError(const std::vector<float>& got, const std::vector<float>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * static_cast<double>(got[i] - want[i]);
    norm += want[i] * static_cast<double>(want[i]);
  }
  return std::sqrt(difference / norm);
}

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
  std::mt19937 random_{7};
};

TEST_F(CudaKernels, RmsNormIsTheCpusAndARowsOwn) {
  for (const int64_t n : {1, 31, 64, 513, 4096, 7168}) {
    constexpr int64_t kRows = 5;
    const std::vector<float> x = Random(kRows * n), weight = Random(n);
    std::vector<float> want(x.size());
    for (int64_t row = 0; row < kRows; ++row) {
      cpu::RmsNorm(x.data() + row * n, weight.data(), n, 1e-6f, want.data() + row * n);
    }
    Device<float> dx(x), dweight(weight), dout(Poison(x.size()));
    ASSERT_EQ(cuda::RmsNorm({dx.get(), dweight.get(), dout.get(), kRows, n, 1e-6f}, nullptr),
              cudaSuccess);
    const std::vector<float> got = dout.Read();
    EXPECT_LT(RelativeError(got, want), kRelative) << "n " << n;
    Device<float> alone(Poison(n));
    ASSERT_EQ(cuda::RmsNorm({dx.get() + 3 * n, dweight.get(), alone.get(), 1, n, 1e-6f}, nullptr),
              cudaSuccess);
    EXPECT_EQ(std::memcmp(alone.Read().data(), got.data() + 3 * n, n * sizeof(float)), 0)
        << "n " << n;
  }
}

TEST_F(CudaKernels, SwiGluIsTheCpus) {
  constexpr int64_t kRows = 7, kN = 333;
  const std::vector<float> gate = Random(kRows * kN, 8.0f), up = Random(kRows * kN, 8.0f),
                           weights = Random(kRows);
  std::vector<float> want(gate.size());
  for (int64_t row = 0; row < kRows; ++row) {
    cpu::SwiGlu(gate.data() + row * kN, up.data() + row * kN, kN, 10.0f, weights[row],
                want.data() + row * kN);
  }
  Device<float> dgate(gate), dup(up), dweights(weights), dout(Poison(gate.size()));
  ASSERT_EQ(
      cuda::SwiGlu({dgate.get(), dup.get(), dweights.get(), dout.get(), kRows, kN, 10.0f}, nullptr),
      cudaSuccess);
  EXPECT_LT(RelativeError(dout.Read(), want), kRelative);
}

TEST_F(CudaKernels, HyperConnectionsAreTheCpus) {
  for (const int streams : {1, 2, 4, 8}) {
    constexpr int64_t kTokens = 67, kDim = 129;
    const int64_t gates = (2 + streams) * streams;
    const std::vector<float> u = Random(kTokens * gates), base = Random(gates),
                             scale = {0.7f, 1.1f, 0.9f};
    const std::vector<float> residual = Random(kTokens * streams * kDim),
                             y = Random(kTokens * kDim);
    std::vector<float> want_hidden(kTokens * kDim), want_residual = residual;
    for (int64_t t = 0; t < kTokens; ++t) {
      cpu::HcGates one;
      cpu::HcMakeGates({streams, 20, 1e-6f}, u.data() + t * gates, 1, base.data(), scale.data(), &one);
      cpu::HcCollapse(residual.data() + t * streams * kDim, one.pre, streams, kDim,
                      want_hidden.data() + t * kDim);
      cpu::HcExpand(y.data() + t * kDim, one, streams, kDim,
                    want_residual.data() + t * streams * kDim);
    }
    Device<float> du(u), dbase(base), dscale(scale), dresidual(residual),
        dhidden(Poison(kTokens * kDim)), dy(y);
    Device<cuda::HcGates> dgates{std::vector<cuda::HcGates>(kTokens)};
    ASSERT_EQ(cuda::HcMakeGates(
                  {du.get(), dbase.get(), dscale.get(), dgates.get(), kTokens, streams}, nullptr),
              cudaSuccess);
    ASSERT_EQ(cuda::HcCollapse(
                  {dgates.get(), dresidual.get(), dhidden.get(), kTokens, kDim, streams}, nullptr),
              cudaSuccess);
    ASSERT_EQ(
        cuda::HcExpand({dgates.get(), dresidual.get(), dy.get(), kTokens, kDim, streams}, nullptr),
        cudaSuccess);
    EXPECT_LT(RelativeError(dhidden.Read(), want_hidden), kRelative) << streams;
    EXPECT_LT(RelativeError(dresidual.Read(), want_residual), kRelative) << streams;
  }
}

TEST_F(CudaKernels, RoutesAsTheCpuDoes) {
  constexpr int64_t kTokens = 41;
  for (const int experts : {8, 100, 256, 1024}) {
    const int k = experts < 100 ? 2 : 6;
    std::vector<float> logits = Random(kTokens * experts, 3.0f), bias = Random(experts, 0.1f);
    std::vector<uint16_t> want_chosen(kTokens * k);
    std::vector<float> want_weights(kTokens * k);
    for (int64_t t = 0; t < kTokens; ++t) {
      std::vector<float> scores(logits.begin() + t * experts, logits.begin() + (t + 1) * experts);
      cpu::SqrtSoftplus(scores.data(), experts);
      cpu::ChooseExperts(scores.data(), bias.data(), experts, k, want_chosen.data() + t * k);
      cpu::ExpertWeights(scores.data(), want_chosen.data() + t * k, k, 1.5f, true,
                         want_weights.data() + t * k);
    }
    Device<float> dlogits(logits), dbias(bias), dweights(Poison(kTokens * k));
    Device<uint16_t> dchosen(std::vector<uint16_t>(kTokens * k, 0xffff));
    cuda::RouteParams params;
    params.logits = dlogits.get();
    params.bias = dbias.get();
    params.chosen = dchosen.get();
    params.weights = dweights.get();
    params.tokens = kTokens;
    params.experts = experts;
    params.k = k;
    params.scale = 1.5f;
    ASSERT_EQ(cuda::Route(params, nullptr), cudaSuccess);
    EXPECT_EQ(dchosen.Read(), want_chosen) << experts;
    EXPECT_LT(RelativeError(dweights.Read(), want_weights), kRelative) << experts;
  }
}

// What a launcher refuses needs no device.
TEST(CudaLaunchers, RefuseShapesTheyCannotDo) {
  cuda::RouteParams params;
  params.experts = cuda::kMaxExperts + 1;
  params.k = 1;
  EXPECT_EQ(cuda::Route(params, nullptr), cudaErrorInvalidValue);
  params.experts = 4;
  params.k = 5;
  EXPECT_EQ(cuda::Route(params, nullptr), cudaErrorInvalidValue);
  cuda::HcMixParams mix;
  mix.streams = cuda::kMaxStreams + 1;
  EXPECT_EQ(cuda::HcCollapse(mix, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::HcExpand(mix, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace reprise::kernels
