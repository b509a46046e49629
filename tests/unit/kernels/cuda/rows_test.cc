// Kernels that work row by row (norms, activation, hyper-connections, routing) against the CPU's
// over random shapes, and each row's bits alone against its bits in a batch.
#include <vector>

#include "kernels/cpu/mhc.h"
#include "kernels/cpu/rmsnorm.h"
#include "kernels/cpu/router.h"
#include "kernels/cpu/swiglu.h"
#include "kernels/cuda/grid.h"
#include "kernels/cuda/mhc.h"
#include "kernels/cuda/rmsnorm.h"
#include "kernels/cuda/router.h"
#include "kernels/cuda/swiglu.h"
#include "tests/unit/kernels/cuda/device.h"

namespace reprise::kernels {
namespace {

TEST_F(CudaKernels, RmsNormIsTheCpusAndARowsOwn) {
  for (const int64_t n : {1, 31, 64, 513, 4096, 7168}) {
    constexpr int64_t kRows = 5;
    const std::vector<float> x = Random(kRows * n), weight = Random(n);
    std::vector<float> want(x.size());
    for (int64_t row = 0; row < kRows; ++row) {
      cpu::RmsNorm(x.data() + row * n, weight.data(), n, 1e-6f, want.data() + row * n);
    }
    Device<float> dx(x), dweight(weight), dout(x.size());
    ASSERT_STARTED(cuda::RmsNorm({dx.get(), dweight.get(), dout.get(), kRows, n, 1e-6f}, nullptr));
    const std::vector<float> got = dout.Read();
    EXPECT_LT(RelativeError(got, want), kFloatError) << "n " << n;
    Device<float> alone(static_cast<size_t>(n));
    ASSERT_STARTED(
        cuda::RmsNorm({dx.get() + 3 * n, dweight.get(), alone.get(), 1, n, 1e-6f}, nullptr));
    EXPECT_TRUE(SameBits(alone.Read(), {got.begin() + 3 * n, got.begin() + 4 * n})) << "n " << n;
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
  Device<float> dgate(gate), dup(up), dweights(weights), dout(gate.size());
  ASSERT_STARTED(cuda::SwiGlu(
      {dgate.get(), dup.get(), dweights.get(), dout.get(), kRows, kN, 10.0f}, nullptr));
  EXPECT_TRUE(SameBits(dout.Read(), want));
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
      cpu::HcMakeGates({streams, 20, 1e-6f}, u.data() + t * gates, 1, base.data(), scale.data(),
                       &one);
      cpu::HcCollapse(residual.data() + t * streams * kDim, one.pre, streams, kDim,
                      want_hidden.data() + t * kDim);
      cpu::HcExpand(y.data() + t * kDim, one, streams, kDim,
                    want_residual.data() + t * streams * kDim);
    }
    Device<float> du(u), dbase(base), dscale(scale), dresidual(residual),
        dhidden(static_cast<size_t>(kTokens * kDim)), dy(y);
    Device<cuda::HcGates> dgates{std::vector<cuda::HcGates>(kTokens)};
    ASSERT_STARTED(cuda::HcMakeGates(
        {du.get(), dbase.get(), dscale.get(), dgates.get(), kTokens, streams}, nullptr));
    ASSERT_STARTED(cuda::HcCollapse(
        {dgates.get(), dresidual.get(), dhidden.get(), kTokens, kDim, streams}, nullptr));
    ASSERT_STARTED(
        cuda::HcExpand({dgates.get(), dresidual.get(), dy.get(), kTokens, kDim, streams}, nullptr));
    EXPECT_TRUE(SameBits(dhidden.Read(), want_hidden)) << streams;
    EXPECT_TRUE(SameBits(dresidual.Read(), want_residual)) << streams;
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
    Device<float> dlogits(logits), dbias(bias), dweights(static_cast<size_t>(kTokens * k));
    Device<uint16_t> dchosen(static_cast<size_t>(kTokens * k));
    cuda::RouteParams params;
    params.logits = dlogits.get();
    params.bias = dbias.get();
    params.chosen = dchosen.get();
    params.weights = dweights.get();
    params.tokens = kTokens;
    params.experts = experts;
    params.k = k;
    params.scale = 1.5f;
    ASSERT_STARTED(cuda::Route(params, nullptr));
    EXPECT_EQ(dchosen.Read(), want_chosen) << experts;
    EXPECT_LT(RelativeError(dweights.Read(), want_weights), kFloatError) << experts;
  }
}

TEST_F(CudaKernels, RoutesByTable) {
  constexpr int64_t kTokens = 9, kVocab = 21;
  constexpr int kExperts = 64, kChosen = 6;
  std::vector<float> logits = Random(kTokens * kExperts, 3.0f);
  std::vector<int64_t> table(kVocab * kChosen);
  for (int64_t& expert : table) expert = RandomBelow(kExperts);
  std::vector<int32_t> ids(kTokens);
  for (int32_t& id : ids) id = static_cast<int32_t>(RandomBelow(kVocab));
  std::vector<uint16_t> want_chosen(kTokens * kChosen);
  std::vector<float> want_weights(kTokens * kChosen);
  for (int64_t t = 0; t < kTokens; ++t) {
    std::vector<float> scores(logits.begin() + t * kExperts, logits.begin() + (t + 1) * kExperts);
    cpu::SqrtSoftplus(scores.data(), kExperts);
    for (int64_t i = 0; i < kChosen; ++i)
      want_chosen[t * kChosen + i] = static_cast<uint16_t>(table[ids[t] * kChosen + i]);
    cpu::ExpertWeights(scores.data(), want_chosen.data() + t * kChosen, kChosen, 2.5f, true,
                       want_weights.data() + t * kChosen);
  }
  Device<float> dlogits(logits), dweights(want_weights.size());
  Device<int64_t> dtable(table);
  Device<int32_t> dids(ids);
  Device<uint16_t> dchosen(want_chosen.size());
  cuda::RouteParams params;
  params.logits = dlogits.get();
  params.table = dtable.get();
  params.ids = dids.get();
  params.chosen = dchosen.get();
  params.weights = dweights.get();
  params.tokens = kTokens;
  params.experts = kExperts;
  params.k = kChosen;
  params.scale = 2.5f;
  ASSERT_STARTED(cuda::Route(params, nullptr));
  EXPECT_EQ(dchosen.Read(), want_chosen);
  EXPECT_LT(RelativeError(dweights.Read(), want_weights), kFloatError);
}

// What a launcher refuses needs no device.
TEST(CudaLaunchers, RefuseShapesTheyCannotDo) {
  cuda::RouteParams params;
  params.experts = cuda::kMaxExperts + 1;
  params.k = 1;
  EXPECT_EQ(cuda::Route(params, nullptr).code(), absl::StatusCode::kInvalidArgument);
  params.experts = 4;
  params.k = 5;
  EXPECT_EQ(cuda::Route(params, nullptr).code(), absl::StatusCode::kInvalidArgument);
  cuda::HcMixParams mix;
  mix.streams = cuda::kMaxStreams + 1;
  EXPECT_EQ(cuda::HcCollapse(mix, nullptr).message(), "HcCollapse: needs 1 to 8 streams");
  EXPECT_EQ(cuda::HcExpand(mix, nullptr).message(), "HcExpand: needs 1 to 8 streams");
  cuda::RmsNormParams norm;
  norm.rows = int64_t{1} << 31;
  norm.n = 1;
  EXPECT_EQ(cuda::RmsNorm(norm, nullptr).code(), absl::StatusCode::kInvalidArgument);
}

TEST(CudaLaunchers, TellErrorsInOneLine) {
  EXPECT_TRUE(cuda::CudaStatus(cudaSuccess, "Route").ok());
  const absl::Status memory = cuda::CudaStatus(cudaErrorMemoryAllocation, "Route");
  EXPECT_EQ(memory.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(memory.message(), "Route: CUDA says out of memory (2)");
  EXPECT_EQ(cuda::CudaStatus(cudaErrorNoDevice, "Route").code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace reprise::kernels
