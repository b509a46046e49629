// Who may speak to the daemon. Unix sockets are guarded by their file permissions; every TCP
// connection, loopback included, must show the bearer token of --token-file in its metadata
// ("authorization: Bearer TOKEN"). The HTTP port's clients show the same token (http/access.h).
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace grpc {
class ServerContextBase;
}

namespace reprise::sandboxd {

class Authorizer {
 public:
  // No token: only unix sockets are served.
  Authorizer() = default;
  // Errors: as base::ReadSecretFile.
  static absl::StatusOr<Authorizer> FromFile(const std::string& path);

  bool has_token() const { return !token_.empty(); }
  // UNAUTHENTICATED unless the peer may call.
  absl::Status Check(const grpc::ServerContextBase& context) const;
  // Whether `shown` is the token; false when there is none.
  bool Matches(std::string_view shown) const;
  // A token for one thing only, in lower-case hexadecimal: the same for the same label as long as
  // the token is the same. REQUIRES: has_token().
  std::string Derive(std::string_view label) const;

 private:
  std::string token_;
};

// Compares in a time that depends on the lengths alone.
bool EqualInConstantTime(std::string_view a, std::string_view b);

}  // namespace reprise::sandboxd
