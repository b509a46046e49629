// Addresses to listen on, made safe: a unix socket gets mode 0600 before anybody can reach it under
// its name, and an address that another program serves is refused instead of taken over.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::sandboxd {

// A unix socket is bound under a private name first, then moved to its place.
class UnixListener {
 public:
  // `path` as wanted. INVALID_ARGUMENT when it is too long for a socket; UNAVAILABLE when somebody
  // answers there.
  static absl::StatusOr<UnixListener> Prepare(const std::string& path);
  UnixListener(UnixListener&& other) noexcept;
  UnixListener& operator=(UnixListener&&) = delete;
  // Removes what it made.
  ~UnixListener();

  const std::string& path() const { return path_; }
  // Where to bind.
  const std::string& private_path() const { return private_path_; }
  // After the bind: mode 0600, and into its place.
  absl::Status Publish();

 private:
  UnixListener(std::string path, std::string directory);

  std::string path_, directory_, private_path_;
  bool published_ = false;
};

}  // namespace reprise::sandboxd
