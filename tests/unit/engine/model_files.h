// Checkpoint directories for tests: a copy of a model's files that a test may damage, and
// safetensors written by hand.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/fd.h"

namespace reprise::engine {

// A copy of `source` (config.json, model.safetensors); where it has no tokenizer.json, that of
// tiny-v4 without the tokens beyond its vocab_size.
class ModelDirectory {
 public:
  explicit ModelDirectory(const std::string& source) : scratch_("model") {
    namespace fs = std::filesystem;
    const fs::path tiny = fs::path(REPRISE_SOURCE_DIR) / "examples" / "tiny-v4";
    for (const char* name : {"config.json", "tokenizer.json", "model.safetensors"}) {
      const bool own = fs::exists(fs::path(source) / name);
      fs::copy_file((own ? fs::path(source) : tiny) / name, fs::path(path()) / name);
    }
    if (!fs::exists(fs::path(source) / "tokenizer.json")) CutTokenizer();
  }
  const std::string& path() const { return scratch_.path(); }
  std::string file(const std::string& name) const { return path() + "/" + name; }

 private:
  void CutTokenizer() {
    using Json = nlohmann::json;
    const int64_t limit = Json::parse(std::ifstream(file("config.json"))).at("vocab_size");
    Json tokenizer = Json::parse(std::ifstream(file("tokenizer.json")));
    Json vocab = Json::object(), merges = Json::array(), added = Json::array();
    for (const auto& [token, id] : tokenizer["model"]["vocab"].items()) {
      if (id < limit) vocab[token] = id;
    }
    for (const Json& merge : tokenizer["model"]["merges"]) {
      const std::string text =
          merge.is_string() ? merge.get<std::string>()
                            : merge[0].get<std::string>() + " " + merge[1].get<std::string>();
      const size_t space = text.find(' ');
      const std::string left = text.substr(0, space), right = text.substr(space + 1);
      if (vocab.contains(left) && vocab.contains(right) && vocab.contains(left + right))
        merges.push_back(merge);
    }
    for (const Json& token : tokenizer["added_tokens"]) {
      if (token.at("id") < limit) added.push_back(token);
    }
    tokenizer["model"]["vocab"] = vocab;
    tokenizer["model"]["merges"] = merges;
    tokenizer["added_tokens"] = added;
    std::ofstream(file("tokenizer.json")) << tokenizer;
  }

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
