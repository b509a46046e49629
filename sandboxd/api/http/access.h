// Who may use what of the HTTP port. The owner shows the daemon's token (--token-file), in the way
// that its client has: `X-API-Key: TOKEN`, `Authorization: Bearer TOKEN`, or as the password of a
// URL (`http://any:TOKEN@HOST:PORT`, which clients turn into `Authorization: Basic`). Whoever was
// given the access token of one sandbox may use that sandbox: `X-Access-Token`,
// `E2B-Traffic-Access-Token`, or a URL signed with it.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "sandboxd/api/auth.h"
#include "sandboxd/api/http/names.h"

namespace reprise::sandboxd::http {

class Access {
 public:
  // `authorizer` has a token, and outlives this.
  explicit Access(const Authorizer* authorizer) : authorizer_(authorizer) {}

  bool IsOwner(const Request& request) const;
  // That this daemon gave somebody `name`; the same after a restart.
  std::string Proof(std::string_view name) const;
  // The access token of a sandbox, which names it; the same after a restart.
  std::string SandboxToken(std::string_view sandbox_id) const;
  // The sandbox that such a token names, whether or not it is one.
  static std::string_view SandboxOf(std::string_view token);
  bool MayUse(const Request& request, std::string_view sandbox_id) const;
  // Whether the query's `signature` and `signature_expiration` allow `operation` ("read" or
  // "write") on the query's path and username in this sandbox. `now_s`: seconds since the epoch.
  bool IsSigned(const Request& request, std::string_view sandbox_id, std::string_view operation,
                int64_t now_s) const;

 private:
  const Authorizer* const authorizer_;
};

struct BasicCredentials {
  std::string user, password;
};
// Of an Authorization header; nullopt when it has none of that scheme.
std::optional<BasicCredentials> BasicOf(const Request& request);

}  // namespace reprise::sandboxd::http
