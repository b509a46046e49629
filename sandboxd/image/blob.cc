#include "sandboxd/image/blob.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>

namespace reprise::sandboxd {
namespace {

constexpr std::string_view kPrefix = "sha256:";
constexpr size_t kHexDigits = 64;

}  // namespace

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr);
}
Sha256::~Sha256() = default;

void Sha256::Update(std::string_view data) {
  EVP_DigestUpdate(state_->context, data.data(), data.size());
}

std::string Sha256::Digest() {
  unsigned char raw[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  EVP_DigestFinal_ex(state_->context, raw, &length);
  std::string digest(kPrefix);
  for (unsigned int i = 0; i < length; ++i)
    fmt::format_to(std::back_inserter(digest), "{:02x}", raw[i]);
  return digest;
}

std::string Sha256Digest(std::string_view data) {
  Sha256 hash;
  hash.Update(data);
  return hash.Digest();
}

absl::Status CheckDigest(std::string_view digest, std::string_view what) {
  const bool good = digest.size() == kPrefix.size() + kHexDigits && digest.starts_with(kPrefix) &&
                    std::all_of(digest.begin() + kPrefix.size(), digest.end(), [](char c) {
                      return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
                    });
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format(
      "{}: the digest is not sha256:<64 hex digits>; only SHA-256 images can be imported", what));
}

}  // namespace reprise::sandboxd
