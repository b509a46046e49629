#include "engine/digest.h"

#include <openssl/evp.h>

#include <memory>
#include <string_view>

#include <fmt/format.h>

#include "base/fd.h"
#include "base/status_macros.h"

namespace reprise::engine {
namespace {

constexpr uint64_t kTextBytesMax = 256 << 20;

class Sha256 {
 public:
  Sha256() { EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr); }
  void Add(const void* data, size_t bytes) { EVP_DigestUpdate(context_.get(), data, bytes); }
  // With its length, so that neighbours cannot be cut differently.
  void AddField(std::string_view text) {
    const uint64_t size = text.size();
    Add(&size, sizeof(size));
    Add(text.data(), text.size());
  }
  std::string Hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    EVP_DigestFinal_ex(context_.get(), digest, &size);
    std::string hex;
    for (unsigned i = 0; i < size; ++i) hex += fmt::format("{:02x}", digest[i]);
    return hex;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_{EVP_MD_CTX_new(),
                                                                   &EVP_MD_CTX_free};
};

}  // namespace

absl::StatusOr<std::string> CheckpointDigest(const Checkpoint& checkpoint, bool reference,
                                             uint64_t whole_bytes_max) {
  Sha256 sha;
  for (const char* name : {"config.json", "tokenizer.json"}) {
    ASSIGN_OR_RETURN(
        const std::string text,
        base::ReadFile(fmt::format("{}/{}", checkpoint.directory(), name), kTextBytesMax));
    sha.AddField(text);
  }
  for (const auto& [name, view] : checkpoint.tensors()) {
    sha.AddField(fmt::format("{} {} {}", name, view.dtype, ShapeText(view.shape)));
    const absl::Span<const uint8_t> sample = checkpoint.Sample(name, view, whole_bytes_max);
    sha.Add(sample.data(), sample.size());
  }
  // What was left out is part of what the digest says.
  if (checkpoint.bytes() > whole_bytes_max) sha.AddField("sampled");
  if (reference) sha.AddField("numerics reference");
  return sha.Hex();
}

}  // namespace reprise::engine
