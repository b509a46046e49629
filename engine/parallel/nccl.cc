#include "engine/parallel/nccl.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "base/status_macros.h"
#include "engine/parallel/gather_plan.h"
#include "kernels/cuda/grid.h"

namespace reprise::engine {
namespace {

using std::chrono::steady_clock;

// As between ranks on processors: one that is silent for longer is lost.
constexpr std::chrono::seconds kSilence{600};
// Looks at NCCL's state, and rests between them once it takes longer.
constexpr int kSpins = 10'000;
constexpr std::chrono::microseconds kRest{200};

// What each rank has for `control` to gather: `mine` [floats], the same number for all.
std::vector<float> GatherAll(Communicator* control, const std::vector<float>& mine) {
  const int64_t floats = static_cast<int64_t>(mine.size());
  std::vector<int64_t> bounds;
  for (int rank = 0; rank <= control->size(); ++rank) bounds.push_back(rank * floats);
  std::vector<float> all(static_cast<size_t>(bounds.back()));
  std::copy(mine.begin(), mine.end(), all.begin() + control->rank() * floats);
  control->AllGather(all.data(), bounds);
  return all;
}

// The id that the first rank made, on all ranks.
static_assert(sizeof(ncclUniqueId) % sizeof(float) == 0, "it travels as floats");
ncclUniqueId Spread(Communicator* control, const ncclUniqueId& id) {
  std::vector<float> bytes(sizeof(id) / sizeof(float));
  std::memcpy(bytes.data(), &id, sizeof(id));
  const std::vector<float> all = GatherAll(control, bytes);
  ncclUniqueId first;
  std::memcpy(&first, all.data(), sizeof(first));
  return first;
}

// What keeps this rank from joining.
absl::Status CheckDevice(int device) {
  int devices = 0;
  RETURN_IF_ERROR(kernels::cuda::CudaStatus(cudaGetDeviceCount(&devices), "counting CUDA devices"));
  if (device < 0 || device >= devices) {
    return absl::UnavailableError(
        fmt::format("CUDA device {} is not one of the {} here", device, devices));
  }
  return kernels::cuda::CudaStatus(cudaSetDevice(device), "choosing a CUDA device");
}

}  // namespace

absl::StatusOr<std::unique_ptr<NcclCommunicator>> NcclCommunicator::Join(Communicator* control,
                                                                         int device) {
  absl::Status mine = CheckDevice(device);
  ncclUniqueId id = {};
  if (mine.ok() && control->rank() == 0) {
    const ncclResult_t made = ncclGetUniqueId(&id);
    if (made != ncclSuccess)
      mine = absl::UnavailableError(fmt::format("NCCL gives no id: {}", ncclGetErrorString(made)));
  }
  // Nobody waits for a rank that cannot come.
  const std::vector<float> ready = GatherAll(control, {mine.ok() ? 1.0f : 0.0f});
  RETURN_IF_ERROR(control->status());
  const auto absent = std::find(ready.begin(), ready.end(), 0.0f);
  if (absent != ready.end()) {
    const std::string why = mine.ok() ? "see that rank's own words" : std::string(mine.message());
    return absl::UnavailableError(
        fmt::format("rank {} cannot use NCCL: {}", absent - ready.begin(), why));
  }
  id = Spread(control, id);
  RETURN_IF_ERROR(control->status());
  auto joined = std::unique_ptr<NcclCommunicator>(
      new NcclCommunicator(control->rank(), control->size(), device));
  RETURN_IF_ERROR(joined->Connect(id));
  return joined;
}

NcclCommunicator::~NcclCommunicator() {
  // A communicator that failed, or whose ranks are gone, cannot be finished in order.
  if (comm_ != nullptr) ncclCommAbort(comm_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::Status NcclCommunicator::Connect(const ncclUniqueId& id) {
  RETURN_IF_ERROR(kernels::cuda::CudaStatus(cudaStreamCreate(&stream_), "making a CUDA stream"));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;  // a lost rank must not hold this one
  const ncclResult_t begun = ncclCommInitRankConfig(&comm_, size_, id, rank_, &config);
  if (begun != ncclSuccess && begun != ncclInProgress) return Lost(begun);
  return Settle(/*stream_too=*/false);
}

void NcclCommunicator::AllGather(float* data, absl::Span<const int64_t> bounds) {
  if (!status_.ok()) return;
  status_ = Gather(data, bounds);
}

absl::Status NcclCommunicator::Gather(float* data, absl::Span<const int64_t> bounds) {
  ASSIGN_OR_RETURN(const GatherPlan plan, PlanGather(bounds, size_));
  if (plan.parts.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(kernels::cuda::CudaStatus(cudaSetDevice(device_), "choosing a CUDA device"));
  ncclResult_t result = ncclSuccess;
  if (plan.even) {
    result = ncclAllGather(data + bounds[rank_], data + bounds[0],
                           static_cast<size_t>(plan.parts[0].count), ncclFloat, comm_, stream_);
  } else {
    result = ncclGroupStart();
    for (const GatherPlan::Part& part : plan.parts) {
      if (result != ncclSuccess && result != ncclInProgress) break;
      float* at = data + part.begin;
      result = ncclBroadcast(at, at, static_cast<size_t>(part.count), ncclFloat, part.root, comm_,
                             stream_);
    }
    const ncclResult_t ended = ncclGroupEnd();
    if (result == ncclSuccess || result == ncclInProgress) result = ended;
  }
  if (result != ncclSuccess && result != ncclInProgress) return Lost(result);
  RETURN_IF_ERROR(Settle(/*stream_too=*/false));
  return Settle(/*stream_too=*/true);
}

absl::Status NcclCommunicator::Settle(bool stream_too) {
  const auto deadline = steady_clock::now() + kSilence;
  for (int looks = 0;; ++looks) {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    if (asked != ncclSuccess) return Lost(asked);
    if (state != ncclSuccess && state != ncclInProgress) return Lost(state);
    if (state == ncclSuccess) {
      const cudaError_t stream = stream_too ? cudaStreamQuery(stream_) : cudaSuccess;
      if (stream != cudaErrorNotReady)
        return kernels::cuda::CudaStatus(stream, "exchanging between GPUs");
    }
    if (steady_clock::now() >= deadline) {
      return absl::UnavailableError(
          fmt::format("a rank is gone: NCCL silent for {} s on rank {}", kSilence.count(), rank_));
    }
    if (looks >= kSpins) std::this_thread::sleep_for(kRest);
  }
}

absl::Status NcclCommunicator::Lost(ncclResult_t result) const {
  return absl::UnavailableError(fmt::format("a rank is gone: NCCL says {} on rank {} of {}: {}",
                                            ncclGetErrorString(result), rank_, size_,
                                            ncclGetLastError(comm_)));
}

}  // namespace reprise::engine
