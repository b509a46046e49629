// The guest's byte stream over Firecracker's vsock: connects to the socket of the device, asks for
// the port of the guest's init until that listens, and carries bytes between it and the supervisor,
// who sees one stream, whatever becomes of the connections below it. Never blocks.
#pragma once

#include <poll.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/fd.h"

namespace reprise::sandboxd::microvm {

class VsockRelay {
 public:
  // `socket`: the device's, as bind has it; `port`: of the guest.
  VsockRelay(std::string socket, uint32_t port) : socket_(std::move(socket)), port_(port) {}

  // The supervisor's end, not blocking. What goes in waits for Connect.
  absl::StatusOr<base::UniqueFd> Begin();
  // Connects, tried again until the guest answers; a connection before it is over.
  void Connect();
  void End();

  void AddPollFds(std::vector<pollfd>* fds) const;
  // Moves what can be moved. A connection that ends takes the supervisor's end along.
  void Step();

 private:
  enum class Stage { kIdle, kAsking, kOpen };
  void TryConnect();
  bool TakeAnswer();
  // False when `from` has ended or `to` is broken.
  bool Carry(int from, int to, std::string* held) const;

  const std::string socket_;
  const uint32_t port_;
  Stage stage_ = Stage::kIdle;
  bool wanted_ = false;  // Connect was asked for and is not done
  base::UniqueFd near_, far_, timer_;
  std::string to_far_, to_near_;
  std::string answer_;  // of the device, so far
};

}  // namespace reprise::sandboxd::microvm
