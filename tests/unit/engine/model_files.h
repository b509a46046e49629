// Checkpoint directories for tests: a copy of a model's files that a test may damage, and
// safetensors written by hand.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/fd.h"

namespace reprise::engine {

// A copy of `source` (config.json, model.safetensors); tokenizer.json comes from tiny-v4 where it
// has none.
class ModelDirectory {
 public:
  explicit ModelDirectory(const std::string& source) : scratch_("model") {
    namespace fs = std::filesystem;
    const fs::path tiny = fs::path(REPRISE_SOURCE_DIR) / "examples" / "tiny-v4";
    for (const char* name : {"config.json", "tokenizer.json", "model.safetensors"}) {
      const fs::path from =
          fs::exists(fs::path(source) / name) ? fs::path(source) / name : tiny / name;
      fs::copy_file(from, fs::path(path()) / name);
    }
  }
  const std::string& path() const { return scratch_.path(); }
  std::string file(const std::string& name) const { return path() + "/" + name; }

 private:
  base::ScratchDir scratch_;
};

struct StoredTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

inline std::string SafetensorsBytes(const std::map<std::string, StoredTensor>& tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  std::string text = header.dump();
  while (text.size() % 8 != 0) text += ' ';
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + text + data;
}

}  // namespace reprise::engine
