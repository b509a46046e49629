// Grids: blockIdx.x is the tile of outputs, y the tile of rows (of an expert), z the group. What a
// row gives does not depend on the tile that it lies in.
#include "kernels/cuda/matmul.cuh"

namespace reprise::kernels::cuda {
namespace {

// Few rows: a decode step. A thread has one product, and a block few rows that are none.
constexpr int kFewRows = 4;
constexpr int kManyRows = 16;
static_assert(kManyRows == kExpertTileRows);

// CUDA kernels

template <int kTokens, int kMicro>
__global__ void __launch_bounds__(kMatmulThreads) MatmulKernel(MatmulParams params) {
  auto& plan = Shared<MatmulPlan<kTokens>>();
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kTokens;
  const int64_t group = blockIdx.z;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kTokens) plan.row[thread] = first + thread < params.rows ? first + thread : -1;
  Weight w = params.w;
  w.rows /= params.groups;
  w.first_row += group * w.rows;
  MatmulTile tile;
  tile.first_column = group * w.cols;
  tile.first_out = static_cast<int64_t>(blockIdx.x) * kOutTile;
  tile.y = params.y + first * params.y_stride + group * w.rows;
  tile.y_stride = params.y_stride;
  tile.rows = static_cast<int>(params.rows - first < kTokens ? params.rows - first : kTokens);
  tile.to_bf16 = params.to_bf16;
  RunTile<kTokens, kMicro>(params.in, w, tile, plan);
}

__global__ void __launch_bounds__(kMatmulThreads) GroupedMatmulKernel(GroupedMatmulParams params) {
  auto& plan = Shared<MatmulPlan<kManyRows>>();
  const ExpertTile job = params.tiles[blockIdx.y];
  if (job.rows == 0) return;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kManyRows) {
    const int place = job.first + thread;
    plan.row[thread] = thread >= job.rows         ? -1
                       : params.row_of == nullptr ? place
                                                  : params.row_of[place];
  }
  Weight w = params.shape;
  w.data = params.data[job.expert];
  if (params.scales != nullptr) w.scales = params.scales[job.expert];
  MatmulTile tile;
  tile.first_out = static_cast<int64_t>(blockIdx.x) * kOutTile;
  tile.y = params.y + job.first * params.y_stride;
  tile.y_stride = params.y_stride;
  tile.rows = job.rows;
  tile.to_bf16 = params.to_bf16;
  RunTile<kManyRows, 2>(params.in, w, tile, plan);
}

absl::Status CheckWeight(const Weight& w, bool has_scales, const char* name) {
  const bool fp4 = w.type == WeightType::kFp4, scaled = fp4 || w.type == WeightType::kFp8;
  return Require((!scaled || has_scales) && (!fp4 || w.cols % kFp4ScaleBlock == 0), name,
                 "scales for FP8 and FP4 weights, and FP4 columns in multiples of 32");
}

template <int kTokens, int kMicro>
absl::Status LaunchMatmul(const MatmulParams& params, cudaStream_t stream) {
  return Launch<MatmulPlan<kTokens>>("Matmul", MatmulKernel<kTokens, kMicro>,
                                     {Blocks(params.w.rows / params.groups, kOutTile),
                                      Blocks(params.rows, kTokens), params.groups},
                                     kMatmulThreads, params, stream);
}

}  // namespace

// kernel launchers

absl::Status Matmul(const MatmulParams& params, cudaStream_t stream) {
  const absl::Status weight = CheckWeight(params.w, params.w.scales != nullptr, "Matmul");
  if (!weight.ok()) return weight;
  const absl::Status groups = Require(params.groups >= 1 && params.w.rows % params.groups == 0,
                                      "Matmul", "groups that divide the weight's rows");
  if (!groups.ok()) return groups;
  return params.rows <= kFewRows ? LaunchMatmul<kFewRows, 1>(params, stream)
                                 : LaunchMatmul<kManyRows, 2>(params, stream);
}

absl::Status GroupedMatmul(const GroupedMatmulParams& params, cudaStream_t stream) {
  const absl::Status checked = CheckWeight(params.shape, params.scales != nullptr, "GroupedMatmul");
  if (!checked.ok()) return checked;
  return Launch<MatmulPlan<kManyRows>>("GroupedMatmul", GroupedMatmulKernel,
                                       {Blocks(params.shape.rows, kOutTile), params.tiles_max},
                                       kMatmulThreads, params, stream);
}

}  // namespace reprise::kernels::cuda
