#include "tests/unit/kernels/simt/memory.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <list>

namespace reprise::kernels::simt {
namespace {

constexpr size_t kAlign = 16;
constexpr uint8_t kPoison = 0xFF, kCanary = 0xC5;

std::list<GuardedBytes>& Arrays() {
  static auto* arrays = new std::list<GuardedBytes>;
  return *arrays;
}

}  // namespace

GuardedBytes::GuardedBytes(size_t bytes) : size_(bytes) {
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t room = (bytes + kAlign - 1) / kAlign * kAlign;
  mapped_ = (room + page - 1) / page * page + 2 * page;
  void* base = ::mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) std::abort();
  base_ = static_cast<uint8_t*>(base);
  if (::mprotect(base_ + page, mapped_ - 2 * page, PROT_READ | PROT_WRITE) != 0) std::abort();
  data_ = base_ + mapped_ - page - room;
  std::fill(base_ + page, data_, kCanary);
  std::fill(data_ + size_, base_ + mapped_ - page, kCanary);
  Poison();
}

GuardedBytes::~GuardedBytes() { ::munmap(base_, mapped_); }

void GuardedBytes::Poison() { std::fill_n(data_, size_, kPoison); }

bool GuardedBytes::Intact() const {
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const auto untouched = [](const uint8_t* from, const uint8_t* to) {
    return std::all_of(from, to, [](uint8_t byte) { return byte == kCanary; });
  };
  return untouched(base_ + page, data_) && untouched(data_ + size_, base_ + mapped_ - page);
}

MemoryImage MemoryImage::Take() {
  MemoryImage image;
  for (const GuardedBytes& array : Arrays())
    image.arrays_.emplace_back(array.data(), array.data() + array.size());
  return image;
}

bool MemoryImage::ArraysIntact() {
  return std::all_of(Arrays().begin(), Arrays().end(),
                     [](const GuardedBytes& array) { return array.Intact(); });
}

void MemoryImage::Restore() const {
  auto at = arrays_.begin();
  for (const GuardedBytes& array : Arrays()) {
    std::copy(at->begin(), at->end(), array.data());
    ++at;
  }
}

}  // namespace reprise::kernels::simt

using reprise::kernels::simt::Arrays;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 9;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  *data = Arrays().emplace_back(bytes).data();
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  Arrays().remove_if([data](const auto& array) { return array.data() == data; });
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
  }
  return "unknown error";
}
