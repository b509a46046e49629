// Memory of the machine: arrays whose bytes are 0xFF at first, with a page without access behind
// them and a canary between the two, and images of all arrays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace reprise::kernels::simt {

// data() is aligned to 16 bytes; no access outside it but up to 15 bytes behind, which are a
// canary.
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t bytes);
  ~GuardedBytes();
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  void Poison();
  bool Intact() const;

 private:
  const size_t size_;
  size_t mapped_ = 0;
  uint8_t* base_ = nullptr;
  uint8_t* data_ = nullptr;
};

// The bytes of all arrays that cudaMalloc gave and that exist.
class MemoryImage {
 public:
  static MemoryImage Take();
  static bool ArraysIntact();
  // REQUIRES: the arrays are the same as then.
  void Restore() const;
  bool operator==(const MemoryImage&) const = default;

 private:
  std::vector<std::vector<uint8_t>> arrays_;
};

}  // namespace reprise::kernels::simt
