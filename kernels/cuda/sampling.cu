#include "kernels/cuda/sampling.cuh"

namespace reprise::kernels::cuda {
namespace {

constexpr int kVerifyThreads = 128;

__global__ void __launch_bounds__(kVerifyThreads) VerifyKernel(VerifyParams params) {
  const int64_t sequence = static_cast<int64_t>(blockIdx.x) * kVerifyThreads + threadIdx.x;
  if (sequence >= params.sequences) return;
  const int32_t first = params.first[sequence], end = params.first[sequence + 1];
  int32_t row = first;
  while (row + 1 < end && params.fed[row + 1] == params.sampled[row].id) ++row;
  params.kept[sequence] = end > first ? row - first + 1 : 0;
}

}  // namespace

// kernel launchers

absl::Status Sample(const SampleParams& params, cudaStream_t stream) {
  const absl::Status checked =
      Require(params.vocab >= 1 && params.vocab <= INT32_MAX, "Sample", "1 to 2^31 - 1 tokens");
  if (!checked.ok()) return checked;
  return Launch<SamplePlan>("Sample", SampleKernel, {params.rows}, kSampleThreads, params, stream);
}

absl::Status VerifyDrafts(const VerifyParams& params, cudaStream_t stream) {
  return Launch<NoShared>("VerifyDrafts", VerifyKernel, {Blocks(params.sequences, kVerifyThreads)},
                          kVerifyThreads, params, stream);
}

}  // namespace reprise::kernels::cuda
