// The HTTP/1.1 port of the daemon: accepts, reads requests within limits, hands them to the routes
// of its surfaces, sends what they answer, and ends in order. It owns its I/O threads; handlers
// never run on them for long (message.h).
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "http/router.h"

namespace reprise::http {

// What one client may take of the server.
struct Limits {
  size_t connections = 16384;                         // open at one time; more are closed at once
  size_t header_bytes = 32u << 10;                    // request line and headers
  size_t buffered_bytes = 512u << 20;                 // bodies held whole, of all requests together
  absl::Duration header_time = absl::Seconds(10);     // first byte to the end of the headers
  absl::Duration idle_time = absl::Seconds(75);       // between two requests of a connection
  absl::Duration body_time = absl::Minutes(2);        // a whole body
  absl::Duration piece_time = absl::Seconds(30);      // one piece of a body in pieces
  absl::Duration write_time = absl::Seconds(60);      // one piece of a response
  absl::Duration handshake_time = absl::Seconds(10);  // TLS
  absl::Duration stop_grace = absl::Seconds(2);       // for answers that are being sent at the end
};

struct ServerOptions {
  std::string listen;             // HOST:PORT (port 0: any)
  std::string tls_cert, tls_key;  // PEM files; both or none
  size_t io_threads = 2;
  Limits limits;
};

class Server {
 public:
  // Serves when it returns. INVALID_ARGUMENT (address, TLS files), UNAVAILABLE (address in use).
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options, Router router);
  // Shutdown.
  virtual ~Server() = default;
  // "HOST:PORT" as bound.
  virtual const std::string& address() const = 0;
  // Stops listening, lets answers in flight end within the grace, closes every connection, joins
  // the threads. REQUIRES: every handler that was called answers soon. Idempotent.
  virtual void Shutdown() = 0;
};

}  // namespace reprise::http
