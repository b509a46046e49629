// Goal: a damaged or impossible checkpoint directory is one line that names the file (and tensor or
// key), what was expected and what was found; never a crash, never a wrong model. Method: a good
// model with one thing changed.
#pragma once

#include <cstring>
#include <functional>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine.h"
#include "tests/unit/engine/model_files.h"

namespace reprise::engine {

using Json = nlohmann::json;

inline constexpr size_t kLengthBytes = 8;

inline std::string Bytes(uint64_t number) {
  return std::string(reinterpret_cast<const char*>(&number), sizeof(number));
}

// The header of a safetensors file and the data behind it.
struct Parts {
  Json header;
  std::string data;
  std::string Join() const {
    return JoinText(header.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  std::string JoinText(const std::string& text) const { return Bytes(text.size()) + text + data; }
};

class BadModelTest : public testing::Test {
 protected:
  BadModelTest() : model_(std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model/two-streams") {}

  std::string Read(const std::string& name) const { return *base::ReadFile(model_.file(name)); }
  void Write(const std::string& name, const std::string& content) const {
    ASSERT_TRUE(base::WriteFileAtomic(model_.file(name), content).ok());
  }
  // The one line with which the directory is refused; it names `file`, or the directory.
  std::string Error(const std::string& file) const {
    auto engine = Engine::Load(model_.path(), {.threads = 1, .max_context = 0});
    EXPECT_FALSE(engine.ok());
    if (engine.ok()) return "";
    const std::string text(engine.status().message());
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    EXPECT_THAT(text, testing::AnyOf(testing::HasSubstr(model_.file(file)),
                                     testing::StartsWith(model_.path() + ": ")));
    return text;
  }
  std::string ErrorOfWeights(const std::string& content) const {
    Write("model.safetensors", content);
    return Error("model.safetensors");
  }
  Parts Weights() const {
    const std::string file = Read("model.safetensors");
    uint64_t length = 0;
    std::memcpy(&length, file.data(), kLengthBytes);
    return {Json::parse(file.substr(kLengthBytes, length)), file.substr(kLengthBytes + length)};
  }
  std::string ErrorOfHeader(const std::function<void(Json*)>& change) const {
    Parts parts = original_;
    change(&parts.header);
    return ErrorOfWeights(parts.Join());
  }
  std::string ErrorOfConfig(const std::function<void(Json*)>& change) const {
    Json config = Json::parse(config_);
    change(&config);
    Write("config.json", config.dump());
    return Error("config.json");
  }

  ModelDirectory model_;
  const std::string config_ = Read("config.json");
  const Parts original_ = Weights();
};

}  // namespace reprise::engine
