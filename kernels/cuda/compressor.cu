// One block a compressed entry, one thread a channel at a time: its rows are read three times
// (largest gate, sum, weighted values), the same way for 8 rows as for 128, and all sums run over
// ascending tokens. Rows lie in the pass or in a ring; neighbouring threads read neighbouring
// channels.
#include "kernels/cuda/compressor.h"

#include "kernels/cuda/entry.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/exp.h"

namespace reprise::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// CUDA kernels

// The rows of one job: `before` tokens of the block before, then `ratio` of its own.
struct PoolRows {
  const CompressParams& params;
  const CompressJob& job;
  int columns, before;

  __device__ int count() const { return before + params.ratio; }
  // Of row i in the pass or, where it came before, in a ring.
  __device__ const float* Find(const float* pass, const PagedRows& ring, int i) const {
    const int64_t position = job.block * params.ratio - before + i;
    if (position >= job.start) return pass + (job.first_row + position - job.start) * columns;
    return reinterpret_cast<const float*>(RingRowOf(ring, job.sequence, position));
  }
  __device__ int Channel(int i, int c) const {
    return c + (params.overlaps && i >= before ? params.width : 0);
  }
  __device__ float Gate(int i, int c) const {
    return Find(params.gates, params.tail_gates, i)[Channel(i, c)];
  }
  __device__ float Value(int i, int c) const {
    return Find(params.values, params.tail_values, i)[Channel(i, c)];
  }
};

__device__ float PoolChannel(const PoolRows& rows, int c) {
  float max = rows.Gate(0, c), sum = 0.0f, pooled = 0.0f;
  for (int i = 1; i < rows.count(); ++i) {
    const float gate = rows.Gate(i, c);
    max = gate > max ? gate : max;
  }
  for (int i = 0; i < rows.count(); ++i) sum += Exp(rows.Gate(i, c) - max);
  for (int i = 0; i < rows.count(); ++i)
    pooled += Exp(rows.Gate(i, c) - max) / sum * rows.Value(i, c);
  return pooled;
}

__global__ void __launch_bounds__(kEntryThreads) CompressKernel(CompressParams params) {
  EntryPlan& plan = Shared<EntryPlan>();
  const CompressJob job = params.jobs[blockIdx.x];
  const PoolRows rows{params, job, params.overlaps ? 2 * params.width : params.width,
                      params.overlaps && job.block > 0 ? params.ratio : 0};
  for (int c = static_cast<int>(threadIdx.x); c < params.width; c += kEntryThreads) {
    const float pooled = PoolChannel(rows, c);
    plan.x[c] = params.quantised ? RoundBf16(pooled) : pooled;
  }
  __syncthreads();
  NormaliseVector(plan, params.norm, params.width, params.eps);
  if (params.quantised) RoundVector(plan.x, params.width);
  const float* angles = params.angles + static_cast<int64_t>(blockIdx.x) * params.rope;
  RotateVector(plan.x, params.width, params.rope / 2, angles, /*inverse=*/false);
  uint8_t* out = RowOf(params.out, job.sequence, job.block);
  const bool packs = params.out.format == RowFormat::kPacked;
  if (!params.quantised) {
    WritePlain(plan.x, params.width, params.out.format, out);
  } else if (!params.index) {
    RoundVector(plan.x, params.width);
    WriteEntry(plan.x, params.width, params.rope, params.out.format, out);
  } else {
    FinishIndexVector(plan.x, params.width, packs ? out : nullptr);
    if (!packs) WritePlain(plan.x, params.width, params.out.format, out);
  }
}

__global__ void __launch_bounds__(kThreads) BiasKernel(KeepTailsParams params) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= params.rows * params.columns) return;
  const int64_t row = at / params.columns, column = at % params.columns;
  params.gates[at] += params.bias[params.positions[row] % params.ratio * params.columns + column];
}

__global__ void __launch_bounds__(kThreads) KeepKernel(KeepTailsParams params) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= params.rows * params.columns) return;
  const int64_t row = at / params.columns, column = at % params.columns;
  if (params.keep[row] == 0) return;
  const int64_t sequence = params.sequences[row], position = params.positions[row];
  const auto put = [&](const PagedRows& ring, float value) {
    reinterpret_cast<float*>(RingRowOf(ring, sequence, position))[column] = value;
  };
  put(params.tail_values, params.values[at]);
  put(params.tail_gates, params.gates[at]);
}

}  // namespace

// kernel launchers

absl::Status AddPositionBias(const KeepTailsParams& params, cudaStream_t stream) {
  return Launch<NoShared>("AddPositionBias", BiasKernel,
                          {Blocks(params.rows * params.columns, kThreads)}, kThreads, params,
                          stream);
}

absl::Status Compress(const CompressParams& params, cudaStream_t stream) {
  const int width = params.width;
  const bool power = width >= kKeyGroup && (width & (width - 1)) == 0;
  const absl::Status checked = Require(
      width >= 1 && width <= kEntryChannelsMax && params.ratio >= 1 && params.rope % 2 == 0 &&
          params.rope <= width && (!params.index || !params.quantised || power) &&
          (params.quantised || params.out.format != RowFormat::kPacked),
      "Compress",
      "up to 512 channels, for quantised keys a power of two from 32 on, and quantised rows where "
      "they are packed");
  if (!checked.ok()) return checked;
  return Launch<EntryPlan>("Compress", CompressKernel, {params.count}, kEntryThreads, params,
                           stream);
}

absl::Status KeepTails(const KeepTailsParams& params, cudaStream_t stream) {
  return Launch<NoShared>("KeepTails", KeepKernel, {Blocks(params.rows * params.columns, kThreads)},
                          kThreads, params, stream);
}

}  // namespace reprise::kernels::cuda
