// One .safetensors file, mapped: an 8-byte little-endian header length, a JSON header, then the
// tensors' bytes. The header is checked wholly before any tensor is given out; data is touched only
// when it is read. Source: the format's README (huggingface/safetensors).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace reprise::engine {

struct TensorView {
  std::string dtype;  // as stored: "BF16", "F32", "I64", "F8_E4M3", ...
  std::vector<int64_t> shape;
  const uint8_t* data = nullptr;  // row major, little-endian; valid as long as its file
  uint64_t bytes = 0;
};

class SafetensorsFile {
 public:
  // DATA_LOSS: truncated, overlapping, gaps, wrong byte counts, malformed header. INVALID_ARGUMENT:
  // a dtype that the format does not know. Each names file and tensor.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }

 private:
  SafetensorsFile(std::string path, const uint8_t* map, uint64_t size)
      : path_(std::move(path)), map_(map), size_(size) {}
  absl::Status ReadHeader();

  const std::string path_;
  const uint8_t* map_;
  const uint64_t size_;
  std::map<std::string, TensorView> tensors_;
};

// A tensor of a file that is being written.
struct TensorHead {
  std::string name, dtype;
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
};
// What stands before the data of a file whose tensors follow in this order, without gaps: the
// length, the header, and padding to 8 bytes.
std::string SafetensorsHead(const std::vector<TensorHead>& tensors);

// "[3, 4]".
std::string ShapeText(const std::vector<int64_t>& shape);

}  // namespace reprise::engine
