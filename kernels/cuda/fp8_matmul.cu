// A block is one warpgroup with 64 rows of the weight and 32 of the input. Tiles of 128 columns
// come by cp.async into a ring of four stages; while the tensor cores multiply one, three are on
// their way.
#include "kernels/cuda/fp8_matmul.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"
#include "kernels/cuda/tile_order.h"
#include "kernels/formats.h"

namespace reprise::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kOuts = ptx::kWgmmaRows, kRows = ptx::kWgmmaColumns;
constexpr int kDepth = 128;  // bytes of a tile's row: what shares a scale
constexpr int kPiece = 16;   // of one copy
[[maybe_unused]] constexpr int kPieces = kDepth / kPiece;
constexpr int kStages = 4;
static_assert(kDepth == kFp8ScaleBlock && kDepth % ptx::kWgmmaDepth == 0);

struct alignas(1024) Plan {
  uint8_t w[kStages][kOuts * kDepth];
  uint8_t x[kStages][kRows * kDepth];
};

// CUDA kernels

// Rows [first, first + kCount) of a matrix of `rows` rows, columns [k, k + 128), swizzled.
template <int kCount>
__device__ void CopyTile(uint8_t* tile, const uint8_t* from, int64_t stride, int64_t first,
                         int64_t rows, int64_t cols, int64_t k) {
  for (int i = static_cast<int>(threadIdx.x); i < kCount * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const int64_t column = k + piece * kPiece;
    const bool exists = first + row < rows && column < cols;
    const uint8_t* at = exists ? from + (first + row) * stride + column : from;
    ptx::CopyAsync(tile + row * kDepth + (piece ^ (row & 7)) * kPiece, at, exists);
  }
}

__global__ void __launch_bounds__(kThreads) Fp8MatmulKernel(MatmulParams params) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  Plan& plan = Shared<Plan>();
  const Weight& w = params.w;
  const int64_t blocks = (w.cols + kDepth - 1) / kDepth;
  const TileAt tile =
      TileOf(blockIdx.x, (w.rows + kOuts - 1) / kOuts, (params.rows + kRows - 1) / kRows);
  const int64_t first_out = tile.out * kOuts, first_row = tile.row * kRows;
  const uint8_t* codes = static_cast<const uint8_t*>(w.data) + w.first_row * w.cols;
  // A group of copies is committed for every block, also behind the last: waits count groups.
  const auto fetch = [&](int64_t block) {
    if (block < blocks) {
      const int stage = static_cast<int>(block % kStages);
      CopyTile<kOuts>(plan.w[stage], codes, w.cols, first_out, w.rows, w.cols, block * kDepth);
      CopyTile<kRows>(plan.x[stage], params.in.codes, params.in.stride, first_row, params.rows,
                      w.cols, block * kDepth);
    }
    ptx::CommitCopies();
  };
  for (int block = 0; block < kStages - 1; ++block) fetch(block);

  const int thread = static_cast<int>(threadIdx.x);
  const int64_t out = first_out + 16 * (thread / 32) + thread % 32 / 4;
  const int64_t row = first_row + thread % 4 * 2;
  float sums[ptx::kWgmmaValues] = {};
  for (int64_t block = 0; block < blocks; ++block) {
    ptx::WaitCopies<kStages - 2>();
    ptx::FenceForTensorCores();
    // The stage is there for all, and all are done with the one that is written next.
    __syncthreads();
    fetch(block + kStages - 1);
    const int stage = static_cast<int>(block % kStages);
    float part[ptx::kWgmmaValues] = {};
    ptx::WgmmaFence();
#pragma unroll
    for (int k = 0; k < kDepth; k += ptx::kWgmmaDepth) {
      ptx::WgmmaE4m3(part, ptx::TileDescriptor(plan.w[stage], k),
                     ptx::TileDescriptor(plan.x[stage], k), /*adds=*/k > 0);
    }
    ptx::WgmmaCommit();
    ptx::WgmmaWait();
#pragma unroll
    for (int i = 0; i < ptx::kWgmmaValues; ++i) {
      const int64_t o = out + 8 * (i / 2 % 2), r = row + 8 * (i / 4) + i % 2;
      if (o >= w.rows || r >= params.rows) continue;
      const float scale =
          WidenE8m0(w.scales[(w.first_row + o) / kFp8ScaleBlock * w.scale_cols + block]) *
          WidenE8m0(params.in.scales[r * params.in.scale_stride + block]);
      sums[i] = fmaf(part[i], scale, sums[i]);
    }
  }
  ptx::WaitCopies<0>();
#pragma unroll
  for (int i = 0; i < ptx::kWgmmaValues; ++i) {
    const int64_t o = out + 8 * (i / 2 % 2), r = row + 8 * (i / 4) + i % 2;
    if (o >= w.rows || r >= params.rows) continue;
    params.y[r * params.y_stride + o] = params.to_bf16 ? RoundBf16(sums[i]) : sums[i];
  }
#endif
}

}  // namespace

// kernel launchers

absl::Status Fp8Matmul(const MatmulParams& params, cudaStream_t stream) {
  const absl::Status checked = Require(
      params.in.codes != nullptr && params.in.scales != nullptr && params.groups == 1 &&
          params.w.type == WeightType::kFp8 && params.w.scales != nullptr &&
          params.w.cols % kPiece == 0 && params.in.stride % kPiece == 0,
      "Fp8Matmul", "FP8 rows and weights with scales, one group, columns in multiples of 16");
  if (!checked.ok()) return checked;
  int device = 0, major = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) return CudaStatus(error, "Fp8Matmul");
  if (major != 9) {
    return absl::FailedPreconditionError(
        "Fp8Matmul: needs a device of compute capability 9.0; use Matmul");
  }
  return Launch<Plan>("Fp8Matmul", Fp8MatmulKernel,
                      {Blocks(params.w.rows, kOuts) * Blocks(params.rows, kRows)}, kThreads, params,
                      stream);
}

}  // namespace reprise::kernels::cuda
