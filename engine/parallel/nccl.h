// A Communicator between GPUs, over NCCL. Ranks that are connected already (a Mesh) agree through
// their connection on who has a device, and on the id under which NCCL makes its own connections.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/communicator.h"

namespace reprise::engine {

class NcclCommunicator final : public Communicator {
 public:
  // All ranks of `control` call it, each with a device of its own; `control` is used until it
  // returns. All ranks get the same kind of answer: UNAVAILABLE, naming the rank, where one has no
  // such device or NCCL does not connect.
  static absl::StatusOr<std::unique_ptr<NcclCommunicator>> Join(Communicator* control, int device);
  ~NcclCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  // `data` is memory of the device. What the default stream has queued before is done first; it
  // returns when the data is there.
  void AllGather(float* data, absl::Span<const int64_t> bounds) override;
  absl::Status status() const override { return status_; }

 private:
  NcclCommunicator(int rank, int size, int device) : rank_(rank), size_(size), device_(device) {}

  absl::Status Connect(const ncclUniqueId& id);
  absl::Status Gather(float* data, absl::Span<const int64_t> bounds);
  // Waits until NCCL has taken what was asked of it, or until the stream is done too. UNAVAILABLE
  // when a rank is lost.
  absl::Status Settle(bool stream_too);
  absl::Status Lost(ncclResult_t result) const;

  const int rank_, size_, device_;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  absl::Status status_;
};

}  // namespace reprise::engine
