#include "kernels/cuda/attention.cuh"

namespace reprise::kernels::cuda {

static_assert(kAttendThreads == kEntryThreads, "a block rotates with all its threads");

absl::Status Attend(const AttendParams& params, cudaStream_t stream) {
  const absl::Status checked = Require(
      params.dim >= kSumLanes && params.dim <= kEntryChannelsMax && params.dim % kSumLanes == 0 &&
          params.rope % 2 == 0 && params.rope <= params.dim && params.window_tokens >= 1 &&
          (params.selected == nullptr || params.ratio > 0),
      "Attend",
      "channels in multiples of 8 up to 512, a window, and a ratio where blocks are selected");
  if (!checked.ok()) return checked;
  return Launch<AttendPlan>("Attend", AttendKernel,
                            {params.count, Blocks(params.heads, kAttendHeads)}, kAttendThreads,
                            params, stream);
}

}  // namespace reprise::kernels::cuda
