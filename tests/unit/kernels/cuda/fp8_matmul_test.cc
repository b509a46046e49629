// FP8 products on tensor cores against the CPU's, over ragged shapes, and the order of their tiles.
#include "kernels/cuda/fp8_matmul.h"

#include <vector>

#include "kernels/cpu/matmul.h"
#include "kernels/cpu/quantise.h"
#include "kernels/cuda/quantise.h"
#include "kernels/cuda/tile_order.h"
#include "tests/unit/kernels/cuda/device.h"
#include "tests/unit/kernels/cuda/random_weight.h"

namespace reprise::kernels {
namespace {

TEST(TileOrderTest, EveryTileOnce) {
  for (const int64_t outs : {1, 7, 8, 9, 64, 100}) {
    for (const int64_t rows : {1, 2, 13}) {
      std::vector<int> seen(static_cast<size_t>(outs * rows), 0);
      for (int64_t i = 0; i < outs * rows; ++i) {
        const cuda::TileAt tile = cuda::TileOf(i, outs, rows);
        ASSERT_TRUE(tile.out >= 0 && tile.out < outs && tile.row >= 0 && tile.row < rows);
        ++seen[tile.out * rows + tile.row];
      }
      EXPECT_EQ(seen, std::vector<int>(seen.size(), 1)) << outs << " x " << rows;
    }
  }
}

TEST_F(CudaKernels, Fp8ProductsOnTensorCoresAreTheCpus) {
  int device = 0, major = 0;
  ASSERT_EQ(cudaGetDevice(&device), cudaSuccess);
  ASSERT_EQ(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), cudaSuccess);
  if (major != 9) GTEST_SKIP() << "needs compute capability 9.0; this device has " << major;
  for (const auto& [rows, outs, cols] :
       {std::tuple<int64_t, int64_t, int64_t>{1, 64, 128}, {33, 200, 1024}, {7, 131, 400}}) {
    const RandomWeight weight(WeightType::kFp8, outs, cols, random_);
    std::vector<float> x = Random(static_cast<size_t>(rows * cols));
    const int64_t groups = (cols + cuda::kFp8Group - 1) / cuda::kFp8Group;
    Device<float> dx(x), y(static_cast<size_t>(rows * outs));
    Device<uint8_t> codes(x.size()), scales(static_cast<size_t>(rows * groups));
    ASSERT_STARTED(cuda::QuantiseFp8({dx.get(), {codes.get(), scales.get()}, rows, cols}, nullptr));
    for (int64_t row = 0; row < rows; ++row)
      cpu::QuantiseFp8(x.data() + row * cols, cols, cpu::kFp8Group, x.data() + row * cols);
    std::vector<float> want(static_cast<size_t>(rows * outs));
    cpu::Matmul(x.data(), cols, rows, weight.host(), 0, outs, want.data(), outs);
    cuda::MatmulParams params;
    params.in = {nullptr, codes.get(), scales.get(), cols, groups};
    params.w = weight.device();
    params.y = y.get();
    params.rows = rows;
    params.y_stride = outs;
    ASSERT_STARTED(cuda::Fp8Matmul(params, nullptr));
    const std::vector<float> got = y.Read();
    EXPECT_LT(RelativeError(got, want), kBf16Error) << rows << " x " << outs << " x " << cols;
    // The last row alone.
    params.in.codes += (rows - 1) * cols;
    params.in.scales += (rows - 1) * groups;
    params.rows = 1;
    Device<float> alone(static_cast<size_t>(outs));
    params.y = alone.get();
    ASSERT_STARTED(cuda::Fp8Matmul(params, nullptr));
    EXPECT_TRUE(SameBits(alone.Read(), {got.end() - outs, got.end()}));
  }
}

}  // namespace
}  // namespace reprise::kernels
