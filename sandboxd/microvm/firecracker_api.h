// Firecracker's REST API on a unix socket, as its OpenAPI description has it: small JSON requests,
// each answered before the next. Answers are bounded and every wait has a deadline.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace reprise::sandboxd::microvm {

class FirecrackerApi {
 public:
  // `socket`: as bind has it. The server may not be there yet.
  explicit FirecrackerApi(std::string socket) : socket_(std::move(socket)) {}

  // Waits until the server takes connections.
  absl::Status Await(int64_t timeout_ms) const;
  // `body` is JSON. INTERNAL with the server's fault message when it refuses; UNAVAILABLE when it
  // is gone, DEADLINE_EXCEEDED when it does not answer.
  absl::Status Put(const std::string& path, const std::string& body, int64_t timeout_ms) const {
    return Send("PUT", path, body, timeout_ms);
  }
  absl::Status Patch(const std::string& path, const std::string& body, int64_t timeout_ms) const {
    return Send("PATCH", path, body, timeout_ms);
  }

 private:
  absl::Status Send(const char* method, const std::string& path, const std::string& body,
                    int64_t timeout_ms) const;

  const std::string socket_;
};

}  // namespace reprise::sandboxd::microvm
