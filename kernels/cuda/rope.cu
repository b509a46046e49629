// One block a vector of up to 512 channels, which it keeps in shared memory between its steps. The
// sum of squares of a head is eight chains of 64 terms: the order of the CPU's, and short.
#include "kernels/cuda/rope.h"

#include "kernels/cuda/entry.cuh"
#include "kernels/cuda/launch.cuh"

namespace reprise::kernels::cuda {
namespace {

constexpr int kAngleThreads = 128;
static_assert(kHeadDimMax == kEntryChannelsMax);

// CUDA kernels

// The angle is rounded to float32 first, as the reference computes it: more would be another model.
__global__ void __launch_bounds__(kAngleThreads) AnglesKernel(RopeAnglesParams params) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kAngleThreads + threadIdx.x;
  if (at >= params.rows * params.pairs) return;
  const int64_t row = at / params.pairs, pair = at % params.pairs;
  const float angle = static_cast<float>(params.positions[row]) * params.frequencies[pair];
  float* out = params.angles + row * 2 * params.pairs + pair;
  out[0] = cosf(angle);
  out[params.pairs] = sinf(angle);
}

__global__ void __launch_bounds__(kEntryThreads) QueriesKernel(FinishQueriesParams params) {
  EntryPlan& plan = Shared<EntryPlan>();
  const int64_t vector = blockIdx.x;
  const float* angles = params.angles + vector / params.heads * params.rope;
  float* q = params.q + vector * params.dim;
  for (int i = static_cast<int>(threadIdx.x); i < params.dim; i += kEntryThreads) plan.x[i] = q[i];
  __syncthreads();
  NormaliseVector(plan, nullptr, params.dim, params.eps);
  if (params.to_bf16) RoundVector(plan.x, params.dim);
  RotateVector(plan.x, params.dim, params.rope / 2, angles, /*inverse=*/false);
  for (int i = static_cast<int>(threadIdx.x); i < params.dim; i += kEntryThreads)
    q[i] = params.to_bf16 ? RoundBf16(plan.x[i]) : plan.x[i];
}

__global__ void __launch_bounds__(kEntryThreads) EntriesKernel(FinishEntriesParams params) {
  EntryPlan& plan = Shared<EntryPlan>();
  const int64_t row = blockIdx.x;
  float* entry = params.entries + row * params.dim;
  for (int i = static_cast<int>(threadIdx.x); i < params.dim; i += kEntryThreads)
    plan.x[i] = entry[i];
  __syncthreads();
  RotateVector(plan.x, params.dim, params.rope / 2, params.angles + row * params.rope,
               /*inverse=*/false);
  uint8_t* kept = reinterpret_cast<uint8_t*>(entry);
  RowFormat format = RowFormat::kF32;
  if (params.sequences != nullptr) {
    kept = RingRowOf(params.ring, params.sequences[row], params.positions[row]);
    format = params.ring.format;
  }
  if (params.quantised) {
    RoundVector(plan.x, params.dim);
    WriteEntry(plan.x, params.dim, params.rope, format, kept);
  } else {
    WritePlain(plan.x, params.dim, format, kept);
  }
  if (params.sequences != nullptr)
    WritePlain(plan.x, params.dim, RowFormat::kF32, reinterpret_cast<uint8_t*>(entry));
}

absl::Status CheckHead(int dim, int rope, const char* name) {
  return Require(dim >= 1 && dim <= kHeadDimMax && rope >= 0 && rope <= dim && rope % 2 == 0, name,
                 "1 to 512 channels, of which an even number rotates");
}

}  // namespace

// kernel launchers

absl::Status RopeAngles(const RopeAnglesParams& params, cudaStream_t stream) {
  return Launch<NoShared>("RopeAngles", AnglesKernel,
                          {Blocks(params.rows * params.pairs, kAngleThreads)}, kAngleThreads,
                          params, stream);
}

absl::Status FinishQueries(const FinishQueriesParams& params, cudaStream_t stream) {
  const absl::Status checked = CheckHead(params.dim, params.rope, "FinishQueries");
  if (!checked.ok()) return checked;
  return Launch<EntryPlan>("FinishQueries", QueriesKernel, {params.rows * params.heads},
                           kEntryThreads, params, stream);
}

absl::Status FinishEntries(const FinishEntriesParams& params, cudaStream_t stream) {
  const absl::Status checked = CheckHead(params.dim, params.rope, "FinishEntries");
  if (!checked.ok()) return checked;
  const bool packs = params.sequences != nullptr && params.ring.format == RowFormat::kPacked;
  const absl::Status rounded = Require(params.quantised || !packs, "FinishEntries",
                                       "quantised entries where they are packed");
  if (!rounded.ok()) return rounded;
  return Launch<EntryPlan>("FinishEntries", EntriesKernel, {params.rows}, kEntryThreads, params,
                           stream);
}

}  // namespace reprise::kernels::cuda
