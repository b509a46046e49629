// The header of a safetensors file: what is given out lies inside the file.
#include "engine/safetensors.h"
#include "tests/fuzz/target.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using reprise::fuzz::Require;
  const reprise::fuzz::MemoryFile file(data, size);
  const auto opened = reprise::engine::SafetensorsFile::Open(file.path());
  if (!opened.ok()) {
    Require(!opened.status().message().empty(), "a refusal says why");
    return 0;
  }
  uint64_t bytes = 0, sum = 0;
  for (const auto& [name, view] : (*opened)->tensors()) {
    bytes += view.bytes;
    if (view.bytes > 0) sum += view.data[0] + view.data[view.bytes - 1];
  }
  Require(bytes <= size, "tensors do not overlap");
  // Every tensor can be read to its end.
  Require(sum <= 2 * 0xFF * (*opened)->tensors().size(), "bytes are bytes");
  return 0;
}
