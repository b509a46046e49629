// Goal and method: bad_model.h. Here: safetensors files and their index.
#include <filesystem>

#include "tests/unit/engine/bad_model.h"

namespace reprise::engine {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;

TEST_F(BadModelTest, TheGoodOneLoads) {
  auto engine = Engine::Load(model_.path(), {.threads = 1, .max_context = 0});
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_TRUE((*engine)->Logits(std::vector<int32_t>{0, 5, 7}).ok());
}

// ---- model.safetensors

TEST_F(BadModelTest, TruncatedAnywhere) {
  const std::string file = Read("model.safetensors");
  const size_t header_end = file.size() - original_.data.size();
  for (size_t size : {size_t{0}, size_t{1}, kLengthBytes - 1, kLengthBytes, kLengthBytes + 1,
                      header_end / 2, header_end - 1, header_end, header_end + 1,
                      header_end + original_.data.size() / 2, file.size() - 1}) {
    SCOPED_TRACE(size);
    EXPECT_THAT(ErrorOfWeights(file.substr(0, size)),
                AnyOf(HasSubstr("truncated"), HasSubstr("no safetensors file")));
  }
  EXPECT_THAT(ErrorOfWeights(file + "x"), HasSubstr("1 bytes follow the last tensor"));
}

TEST_F(BadModelTest, HeaderLengthsThatCannotBe) {
  const std::string rest = Read("model.safetensors").substr(kLengthBytes);
  for (uint64_t length : {uint64_t{rest.size() + 1}, uint64_t{100'000'001}, uint64_t{1} << 63,
                          UINT64_MAX, UINT64_MAX - 7}) {
    EXPECT_THAT(ErrorOfWeights(Bytes(length) + rest),
                HasSubstr("header of " + std::to_string(length) + " bytes in a file of"));
  }
  EXPECT_THAT(ErrorOfWeights(Bytes(0) + rest), HasSubstr("the header is not a JSON object"));
}

TEST_F(BadModelTest, HeadersThatAreNoJsonObject) {
  for (const std::string& text :
       {std::string("[]"), std::string("{"), std::string("5"), std::string("{\"a\":"),
        std::string("\xff\xfe"), std::string(1 << 20, '['), std::string(16, '\0')}) {
    EXPECT_THAT(ErrorOfWeights(original_.JoinText(text)),
                HasSubstr("the header is not a JSON object"));
  }
}

TEST_F(BadModelTest, EntriesThatAreMalformedNameTheTensor) {
  struct Case {
    const char* key;
    Json value;
    const char* expected;
  };
  const std::vector<Case> cases = {
      {"dtype", 5, "lacks dtype"},
      {"dtype", "F12", "unknown dtype \"F12\""},
      {"dtype", "", "unknown dtype \"\""},
      {"shape", "x", "its shape is malformed"},
      {"shape", {-1, 48}, "its shape is malformed"},
      {"shape", {1.5}, "its shape is malformed"},
      {"shape", {uint64_t{1} << 41}, "its shape is malformed"},
      {"shape", {uint64_t{1} << 40, uint64_t{1} << 40}, "its shape is malformed"},
      {"shape", {1 << 20, 1 << 20}, "takes"},
      {"shape", {0, 48}, "takes 0 bytes"},
      {"shape", Json::array(), "takes"},
      {"data_offsets", {0}, "its data_offsets are malformed"},
      {"data_offsets", {0, -1}, "its data_offsets are malformed"},
      {"data_offsets", {8, 0}, "its data_offsets are malformed"},
      {"data_offsets", {"0", "8"}, "its data_offsets are malformed"},
      {"data_offsets", {0, UINT64_MAX}, "its data ends at byte 18446744073709551615"},
      {"data_offsets", {0, 1}, "and has 1"},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.expected);
    EXPECT_THAT(
        ErrorOfHeader([&](Json* header) { (*header)["norm.weight"][each.key] = each.value; }),
        AllOf(HasSubstr("norm.weight"), HasSubstr(each.expected)));
  }
  EXPECT_THAT(ErrorOfHeader([](Json* header) { (*header)["norm.weight"] = 5; }),
              HasSubstr("norm.weight"));
  EXPECT_THAT(ErrorOfHeader([](Json* header) { (*header)["norm.weight"].erase("shape"); }),
              HasSubstr("norm.weight"));
}

TEST_F(BadModelTest, OverlapsAndGapsAreFound) {
  // Two tensors of the same size in the same place leave a hole where one of them was.
  EXPECT_THAT(ErrorOfHeader([](Json* header) {
                (*header)["norm.weight"]["data_offsets"] =
                    (*header)["layers.0.attn_norm.weight"]["data_offsets"];
              }),
              HasSubstr("overlap or leave a gap at byte"));
  Parts gap = original_;
  for (auto& [name, entry] : gap.header.items()) {
    if (name == "__metadata__") continue;
    for (Json& offset : entry["data_offsets"]) offset = offset.get<uint64_t>() + 4;
  }
  gap.data = "gap!" + gap.data;
  EXPECT_THAT(ErrorOfWeights(gap.Join()), HasSubstr("overlap or leave a gap at byte 0"));
}

TEST_F(BadModelTest, TensorsMustBeThoseOfTheConfig) {
  EXPECT_THAT(ErrorOfHeader([](Json* header) {
                (*header)["norm.weights"] = (*header)["norm.weight"];
                header->erase("norm.weight");
              }),
              AllOf(HasSubstr("norm.weight"), HasSubstr("missing"), HasSubstr("[48]")));
  EXPECT_THAT(ErrorOfHeader([](Json* header) {
                const Json shape = (*header)["head.weight"]["shape"];
                (*header)["head.weight"]["shape"] = {shape[1], shape[0]};
              }),
              AllOf(HasSubstr("head.weight"), HasSubstr("[300, 48]"), HasSubstr("[48, 300]")));
  Parts extra = original_;
  extra.header["spare.weight"] = {{"dtype", "F32"},
                                  {"shape", {1}},
                                  {"data_offsets", {extra.data.size(), extra.data.size() + 4}}};
  extra.data += "1234";
  EXPECT_THAT(ErrorOfWeights(extra.Join()),
              AllOf(HasSubstr("spare.weight"), HasSubstr("not part of")));
  // A matrix of whole numbers, and a table of floats of the same size.
  EXPECT_THAT(ErrorOfHeader([](Json* header) { (*header)["norm.weight"]["dtype"] = "I16"; }),
              AllOf(HasSubstr("norm.weight"), HasSubstr("I16")));
  EXPECT_THAT(
      ErrorOfHeader([](Json* header) { (*header)["layers.0.ffn.gate.tid2eid"]["dtype"] = "F64"; }),
      AllOf(HasSubstr("layers.0.ffn.gate.tid2eid"), HasSubstr("I64"), HasSubstr("F64")));
}

TEST_F(BadModelTest, AHashTableThatNamesNoExpert) {
  for (int64_t expert : {int64_t{4}, int64_t{-1}, INT64_MIN}) {
    Parts parts = original_;
    const size_t begin = parts.header["layers.0.ffn.gate.tid2eid"]["data_offsets"][0];
    parts.data.replace(begin + 8, 8, Bytes(static_cast<uint64_t>(expert)));
    EXPECT_THAT(ErrorOfWeights(parts.Join()),
                AllOf(HasSubstr("layers.0.ffn.gate.tid2eid"), HasSubstr("element 1"),
                      HasSubstr(std::to_string(expert))));
  }
}

// ---- shards

TEST_F(BadModelTest, AnIndexMustAgreeWithItsShards) {
  Json map = Json::object();
  for (const auto& [name, entry] : original_.header.items()) {
    if (name != "__metadata__") map[name] = "one.safetensors";
  }
  std::filesystem::rename(model_.file("model.safetensors"), model_.file("one.safetensors"));
  const std::string index = "model.safetensors.index.json";
  auto error = [&](const Json& content) {
    Write(index, content.dump());
    auto engine = Engine::Load(model_.path(), {.threads = 1, .max_context = 0});
    EXPECT_FALSE(engine.ok());
    const std::string text(engine.status().message());
    EXPECT_THAT(text, HasSubstr(model_.path()));
    EXPECT_EQ(text.find('\n'), std::string::npos);
    return text;
  };
  EXPECT_THAT(error(5), HasSubstr("no weight_map object"));
  EXPECT_THAT(error({{"weight_map", {}}}), HasSubstr("no weight_map object"));
  Json bad = map;
  bad["norm.weight"] = 5;
  EXPECT_THAT(error({{"weight_map", bad}}), HasSubstr("norm.weight has no file name"));
  bad["norm.weight"] = "../one.safetensors";
  EXPECT_THAT(error({{"weight_map", bad}}), HasSubstr("norm.weight has no file name"));
  bad["norm.weight"] = "two.safetensors";
  EXPECT_THAT(error({{"weight_map", bad}}), HasSubstr("safetensors"));
  bad = map;
  bad.erase("norm.weight");
  EXPECT_THAT(error({{"weight_map", bad}}), HasSubstr("the index does not say so"));
  bad = map;
  bad["spare"] = "one.safetensors";
  EXPECT_THAT(error({{"weight_map", bad}}), HasSubstr("spare is not in one.safetensors"));
  Write(index, Json{{"weight_map", map}}.dump());
  EXPECT_TRUE(Engine::Load(model_.path(), {.threads = 1, .max_context = 0}).ok());
}

}  // namespace
}  // namespace reprise::engine
