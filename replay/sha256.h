// SHA-256 over pieces, with the length-prefixed pieces that every digest of the journal is made of.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace reprise::replay {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  Sha256& Add(std::string_view bytes);
  Sha256& AddU64(uint64_t value);            // 8 bytes, little-endian
  Sha256& AddSized(std::string_view bytes);  // AddU64(size), Add(bytes)
  std::string Finish();                      // 32 bytes; call once

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string Sha256Of(std::string_view bytes);
std::string Hex(std::string_view bytes);  // lower case

}  // namespace reprise::replay
