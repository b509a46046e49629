// A Communicator over one connected socket to every other rank: TCP between hosts, or unix sockets.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "base/fd.h"
#include "engine/communicator.h"

namespace reprise::engine {

class Mesh final : public Communicator {
 public:
  // peers[r]: a connection to rank r; none at [rank]. At least two ranks.
  Mesh(int rank, std::vector<base::UniqueFd> peers);

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(peers_.size()); }
  void AllGather(float* data, absl::Span<const int64_t> bounds) override;
  absl::Status status() const override { return status_; }

 private:
  // In front of the data of one call: what the receiver expects too.
  struct Head {
    uint64_t call = 0;   // from 0
    uint64_t bytes = 0;  // of the sender's part
  };
  // What is still to be sent to, and received from, one rank.
  struct Exchange {
    Head out, in;
    size_t sent = 0, received = 0;  // with the heads
  };

  absl::Status Gather(char* data, absl::Span<const int64_t> bounds);
  // As far as it goes without waiting.
  absl::Status Push(int peer, Exchange* exchange, const char* part);
  absl::Status Pull(int peer, Exchange* exchange, char* part, uint64_t bytes);

  const int rank_;
  const std::vector<base::UniqueFd> peers_;
  uint64_t calls_ = 0;
  std::vector<Exchange> exchanges_;
  absl::Status status_;
};

}  // namespace reprise::engine
