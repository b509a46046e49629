// Copies of checkpoints: what must be the same bit for bit, what is rounded and how far, and that
// nothing is left of a copy that failed.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/convert.h"
#include "engine/engine.h"
#include "engine/stored_rows.h"
#include "tests/unit/engine/model_files.h"

namespace reprise::engine {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const std::string kSource = REPRISE_SOURCE_DIR;
const std::string kTiny = kSource + "/examples/tiny-v4";

std::unique_ptr<Checkpoint> Opened(const std::string& directory) {
  auto checkpoint = Checkpoint::Open(directory);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return *std::move(checkpoint);
}

std::string Bytes(const TensorView& view) {
  return std::string(reinterpret_cast<const char*>(view.data), view.bytes);
}

void ExpectSameTensors(const std::string& a, const std::string& b) {
  const auto left = Opened(a), right = Opened(b);
  ASSERT_EQ(left->tensors().size(), right->tensors().size());
  for (const auto& [name, view] : left->tensors()) {
    const TensorView* other = right->Find(name);
    ASSERT_NE(other, nullptr) << name;
    EXPECT_EQ(view.dtype, other->dtype) << name;
    EXPECT_EQ(view.shape, other->shape) << name;
    EXPECT_TRUE(Bytes(view) == Bytes(*other)) << name;
  }
}

std::vector<float> Logits(const std::string& directory, Numerics numerics) {
  auto engine = Engine::Load(directory, {.threads = 2, .numerics = numerics});
  EXPECT_TRUE(engine.ok()) << engine.status();
  if (!engine.ok()) return {};
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 150; ++i) ids.push_back(i * 37 % 256);
  auto logits = (*engine)->Logits(ids);
  EXPECT_TRUE(logits.ok()) << logits.status();
  return logits.ok() ? *std::move(logits) : std::vector<float>();
}

std::vector<float> Values(const Checkpoint& checkpoint, const std::string& name) {
  auto rows = StoredRows::Of(checkpoint, name);
  EXPECT_TRUE(rows.ok()) << rows.status();
  std::vector<float> out(static_cast<size_t>(rows->rows() * rows->cols()));
  for (int64_t row = 0; row < rows->rows(); ++row)
    EXPECT_TRUE(rows->Read(row, out.data() + row * rows->cols()).ok()) << name;
  return out;
}

class ConvertTest : public testing::Test {
 protected:
  std::string Made(const std::string& name) const { return scratch_.path() + "/" + name; }
  std::string Convert(const std::string& from, const std::string& name,
                      const ConvertOptions& options) {
    auto made = ConvertCheckpoint(from, Made(name), options);
    EXPECT_TRUE(made.ok()) << made.status();
    if (made.ok()) made_ = *made;
    return Made(name);
  }
  // The message; expects that nothing was left.
  std::string Refused(const std::string& from, const ConvertOptions& options) {
    const absl::Status status = ConvertCheckpoint(from, Made("refused"), options).status();
    EXPECT_FALSE(status.ok());
    for (const auto& entry : fs::directory_iterator(scratch_.path()))
      EXPECT_EQ(entry.path().filename().string().find("refused"), std::string::npos) << entry;
    return std::string(status.message());
  }

  base::ScratchDir scratch_{"convert"};
  Converted made_;
};

TEST_F(ConvertTest, NamesOfTransformersAndBackAreTheSameBytes) {
  for (const std::string& from : {kTiny, kSource + "/tests/golden/model/pro-order"}) {
    const std::string name = fs::path(from).filename();
    const std::string theirs = Convert(from, name + "-theirs", {.transformers = true});
    bool stacked = false;
    const auto checkpoint = Opened(theirs);
    for (const auto& file : checkpoint->files())
      stacked |= file->tensors().contains("model.layers.0.mlp.experts.gate_up_proj");
    EXPECT_TRUE(stacked);
    ExpectSameTensors(from, Convert(theirs, name + "-back", {}));
  }
  EXPECT_EQ(Logits(Made("tiny-v4-theirs"), Numerics::kAuto), Logits(kTiny, Numerics::kAuto));
  EXPECT_TRUE(fs::exists(Made("tiny-v4-back") + "/tokenizer.json"));
}

TEST_F(ConvertTest, FourAndEightBitsComeOutOfBf16AsTheyWere) {
  const ModelDirectory quantised(kSource + "/tests/golden/model/quantised/csa");
  const std::string wide =
      Convert(quantised.path(), "wide", {.matrices = StoredAs::kBf16, .experts = StoredAs::kBf16});
  EXPECT_FALSE(Opened(wide)->quantised());
  EXPECT_EQ(Logits(wide, Numerics::kFloat), Logits(quantised.path(), Numerics::kFloat));
  // Once on the grid, rounding to it changes no value; scales may be smaller, and codes follow.
  const std::string again =
      Convert(wide, "again", {.matrices = StoredAs::kFp8, .experts = StoredAs::kFp4});
  EXPECT_EQ(Logits(again, Numerics::kReference), Logits(quantised.path(), Numerics::kReference));
}

TEST_F(ConvertTest, RoundingIsToTheNearestOfEachBlocksGrid) {
  const std::string made =
      Convert(kTiny, "made", {.matrices = StoredAs::kFp8, .experts = StoredAs::kFp4});
  const auto from = Opened(kTiny), to = Opened(made);
  int64_t checked = 0;
  for (const auto& [name, view] : to->tensors()) {
    const bool fp4 = view.dtype == "I8";
    if (!fp4 && view.dtype != "F8_E4M3") continue;
    const std::vector<float> exact = Values(*from, name), rounded = Values(*to, name);
    const TensorView& scales = *to->Find(ScaleName(name));
    const int64_t cols = fp4 ? view.shape[1] * 2 : view.shape[1];
    ASSERT_EQ(exact.size(), rounded.size());
    std::map<int64_t, float> largest;  // of a block, in its scale
    for (size_t i = 0; i < exact.size(); ++i) {
      const int64_t row = static_cast<int64_t>(i) / cols, col = static_cast<int64_t>(i) % cols;
      const int64_t block =
          fp4 ? row * scales.shape[1] + col / 32 : row / 128 * scales.shape[1] + col / 128;
      const double scale = std::ldexp(1.0, scales.data[block] - 127);
      const double x = exact[i] / scale;
      // Half a unit in the last place: of the value's own power of two, or of the least normal one.
      const double power = std::max(std::abs(x), fp4 ? 1.0 : 0x1p-6);
      const double unit = std::ldexp(1.0, std::ilogb(power) - (fp4 ? 1 : 3));
      ASSERT_LE(std::abs(rounded[i] / scale - x), unit / 2 * (1 + 1e-9)) << name << " " << i;
      largest[block] = std::max(largest[block], static_cast<float>(std::abs(x)));
      ++checked;
    }
    const float limit = fp4 ? 6 : 448;
    for (const auto& [block, x] : largest) {
      EXPECT_LE(x, limit) << name;
      EXPECT_GT(x, limit / 2) << name << ": the scale of block " << block << " is too large";
    }
  }
  EXPECT_GT(checked, 500'000);
}

TEST_F(ConvertTest, KeepsTheFirstExperts) {
  const std::string made = Convert(kTiny, "made", {.experts_kept = 3});
  const auto from = Opened(kTiny), to = Opened(made);
  EXPECT_EQ(to->Find("layers.4.ffn.experts.3.w1.weight"), nullptr);
  for (const char* name : {"layers.4.ffn.experts.2.w1.weight", "embed.weight"})
    EXPECT_TRUE(Bytes(*from->Find(name)) == Bytes(*to->Find(name))) << name;
  const std::string gate = Bytes(*to->Find("layers.4.ffn.gate.weight"));
  EXPECT_EQ(Bytes(*from->Find("layers.4.ffn.gate.weight")).substr(0, gate.size()), gate);
  const TensorView& table = *to->Find("layers.0.ffn.gate.tid2eid");
  const TensorView& old = *from->Find("layers.0.ffn.gate.tid2eid");
  const int64_t* ids = reinterpret_cast<const int64_t*>(table.data);
  const int64_t* before = reinterpret_cast<const int64_t*>(old.data);
  for (int64_t token = 0; token < table.shape[0]; ++token) {
    std::set<int64_t> distinct;
    for (int64_t k = 0; k < table.shape[1]; ++k) {
      const int64_t id = ids[token * table.shape[1] + k];
      EXPECT_TRUE(id >= 0 && id < 3) << id;
      distinct.insert(id);
    }
    EXPECT_EQ(static_cast<int64_t>(distinct.size()), table.shape[1]);
    EXPECT_EQ(ids[token * table.shape[1]], before[token * table.shape[1]] % 3);
  }
  EXPECT_FALSE(Logits(made, Numerics::kAuto).empty());
}

TEST_F(ConvertTest, ShardsAreOfTheSizeAskedFor) {
  const std::string made = Convert(kTiny, "made", {.shard_bytes = 300'000});
  EXPECT_GT(made_.files, 5);
  int64_t files = 0;
  for (const auto& entry : fs::directory_iterator(made)) {
    if (entry.path().extension() != ".safetensors") continue;
    ++files;
    EXPECT_LT(entry.file_size(), 310'000u) << entry;
  }
  EXPECT_EQ(files, made_.files);
  ExpectSameTensors(kTiny, made);
}

TEST_F(ConvertTest, RefusesInOneLineAndLeavesNothing) {
  EXPECT_THAT(Refused(kTiny, {.matrices = StoredAs::kFp4}), HasSubstr("experts only"));
  EXPECT_THAT(Refused(kTiny, {.experts_kept = 9}), HasSubstr("cannot keep 9 experts"));
  EXPECT_THAT(Refused(kTiny, {.experts = StoredAs::kFp8, .transformers = true}),
              HasSubstr("multiple of 128"));
  EXPECT_THAT(Refused(kTiny + "/missing", {}), HasSubstr("config.json"));
  int calls = 0;
  EXPECT_THAT(Refused(kTiny, {.shard_bytes = 300'000,
                              .progress = [&](uint64_t, uint64_t) { return ++calls < 3; }}),
              HasSubstr("stopped"));
  fs::create_directory(Made("there"));
  EXPECT_EQ(ConvertCheckpoint(kTiny, Made("there"), {}).status().code(),
            absl::StatusCode::kAlreadyExists);

  const ModelDirectory damaged(kTiny);
  std::string bytes = *base::ReadFile(damaged.file("model.safetensors"));
  const auto checkpoint = Opened(damaged.path());
  const TensorView& view = *checkpoint->Find("layers.2.attn.wq_a.weight");
  const std::string needle = Bytes(view);
  const size_t at = bytes.find(needle);
  ASSERT_NE(at, std::string::npos);
  // Row 3, column 1: infinity in bfloat16.
  const size_t element = at + static_cast<size_t>(3 * view.shape[1] + 1) * 2;
  bytes[element] = static_cast<char>(0x80);
  bytes[element + 1] = 0x7F;
  std::ofstream(damaged.file("model.safetensors"), std::ios::binary) << bytes;
  EXPECT_THAT(Refused(damaged.path(), {.matrices = StoredAs::kFp8}),
              testing::AllOf(HasSubstr("layers.2.attn.wq_a.weight"), HasSubstr("row 3")));
}

}  // namespace
}  // namespace reprise::engine
