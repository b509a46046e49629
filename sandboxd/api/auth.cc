#include "sandboxd/api/auth.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <grpcpp/server_context.h>

#include "base/secret_file.h"
#include "base/status_macros.h"
#include "replay/sha256.h"

namespace reprise::sandboxd {
namespace {

constexpr std::string_view kScheme = "Bearer ";

}  // namespace

bool EqualInConstantTime(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference = static_cast<unsigned char>(difference | (a[i] ^ b[i]));
  }
  // Read through a volatile: the loop must not be cut short.
  volatile unsigned char seen = difference;
  return seen == 0;
}

absl::StatusOr<Authorizer> Authorizer::FromFile(const std::string& path) {
  ASSIGN_OR_RETURN(std::string token, base::ReadSecretFile(path, "token"));
  Authorizer authorizer;
  authorizer.token_ = std::move(token);
  return authorizer;
}

bool Authorizer::Matches(std::string_view shown) const {
  return has_token() && EqualInConstantTime(shown, token_);
}

std::string Authorizer::Derive(std::string_view label) const {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  HMAC(EVP_sha256(), token_.data(), static_cast<int>(token_.size()),
       reinterpret_cast<const unsigned char*>(label.data()), label.size(), digest, &size);
  return replay::Hex(std::string_view(reinterpret_cast<const char*>(digest), size));
}

absl::Status Authorizer::Check(const grpc::ServerContextBase& context) const {
  std::string peer = context.peer();
  if (peer.rfind("unix:", 0) == 0) return absl::OkStatus();
  auto range = context.client_metadata().equal_range("authorization");
  for (auto it = range.first; it != range.second && has_token(); ++it) {
    std::string_view value(it->second.data(), it->second.size());
    if (value.substr(0, kScheme.size()) == kScheme && Matches(value.substr(kScheme.size())))
      return absl::OkStatus();
  }
  return absl::UnauthenticatedError(
      "a TCP client must send the daemon's token: metadata \"authorization: Bearer TOKEN\"");
}

}  // namespace reprise::sandboxd
