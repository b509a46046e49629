#include "replay/sha256.h"

#include <openssl/evp.h>

#include "absl/strings/escaping.h"

namespace reprise::replay {

struct Sha256::Context {
  EVP_MD_CTX* evp = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(evp); }
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  EVP_DigestInit_ex(context_->evp, EVP_sha256(), nullptr);
}
Sha256::~Sha256() = default;

Sha256& Sha256::Add(std::string_view bytes) {
  EVP_DigestUpdate(context_->evp, bytes.data(), bytes.size());
  return *this;
}

Sha256& Sha256::AddU64(uint64_t value) {
  char bytes[8];
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(value >> (8 * i));
  return Add(std::string_view(bytes, 8));
}

Sha256& Sha256::AddSized(std::string_view bytes) { return AddU64(bytes.size()).Add(bytes); }

std::string Sha256::Finish() {
  std::string digest(32, '\0');
  EVP_DigestFinal_ex(context_->evp, reinterpret_cast<unsigned char*>(digest.data()), nullptr);
  return digest;
}

std::string Sha256Of(std::string_view bytes) { return Sha256().Add(bytes).Finish(); }

std::string Hex(std::string_view bytes) { return absl::BytesToHexString(std::string(bytes)); }

}  // namespace reprise::replay
