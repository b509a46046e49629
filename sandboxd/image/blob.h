// Content addresses: what a blob is called, and the SHA-256 that checks it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace reprise::sandboxd {

// A blob of an image. `digest` is "sha256:<64 lower-case hex>", `size` in bytes, as stored.
struct BlobRef {
  std::string media_type;
  std::string digest;
  int64_t size = 0;
};

// SHA-256 of data that comes in pieces.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void Update(std::string_view data);
  std::string Digest();  // "sha256:<hex>"; ends the hash

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Sha256Digest(std::string_view data);

// INVALID_ARGUMENT unless `digest` has the form above: only then may it become part of a path.
absl::Status CheckDigest(std::string_view digest, std::string_view what);

}  // namespace reprise::sandboxd
