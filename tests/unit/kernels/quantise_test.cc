// The number formats of quantised checkpoints: every code, ties, and the AVX2 tiles against the
// portable ones bit by bit.
#include "kernels/cpu/quantise.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cpu/dot.h"
#include "kernels/exp.h"
#include "kernels/formats.h"

namespace reprise::kernels::cpu {
namespace {

std::vector<float> Normals(size_t n, uint32_t seed, float size = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, size);
  std::vector<float> out(n);
  for (float& x : out) x = normal(random);
  return out;
}

TEST(FormatsTest, E4m3HasItsValues) {
  EXPECT_EQ(WidenE4m3(0x00), 0.0f);
  EXPECT_EQ(WidenE4m3(0x01), 0x1.0p-9f);
  EXPECT_EQ(WidenE4m3(0x07), 7 * 0x1.0p-9f);
  EXPECT_EQ(WidenE4m3(0x08), 0x1.0p-6f);
  EXPECT_EQ(WidenE4m3(0x38), 1.0f);
  EXPECT_EQ(WidenE4m3(0x7E), 448.0f);
  EXPECT_EQ(WidenE4m3(0xB9), -1.125f);
  for (int code = 1; code < 0x7F; ++code)
    EXPECT_LT(WidenE4m3(static_cast<uint8_t>(code - 1)), WidenE4m3(static_cast<uint8_t>(code)));
  EXPECT_EQ(WidenE8m0(0), 0x1.0p-127f);
  EXPECT_EQ(WidenE8m0(127), 1.0f);
  EXPECT_EQ(WidenE8m0(kScaleByteMax), 0x1.0p119f);
}

// Every e4m3 value is a fixed point, the middle of two neighbours goes to the even code, and a
// little to either side to that side. The group's largest is 448, so that its scale is 1.
TEST(QuantiseTest, Fp8RoundsToTheNearestTiesToEven) {
  for (int code = 0; code < 0x7E; ++code) {
    const float low = WidenE4m3(static_cast<uint8_t>(code));
    const float high = WidenE4m3(static_cast<uint8_t>(code + 1));
    const float middle = (low + high) / 2;
    const float even = code % 2 == 0 ? low : high;
    const float x[] = {
        448, low, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 500.0f), -middle};
    float out[6];
    QuantiseFp8(x, 6, kFp8Group, out);
    EXPECT_EQ(out[0], 448);
    EXPECT_EQ(out[1], low) << code;
    EXPECT_EQ(out[2], even) << code;
    EXPECT_EQ(out[3], low) << code;
    EXPECT_EQ(out[4], high) << code;
    EXPECT_EQ(out[5], -even) << code;
  }
}

TEST(QuantiseTest, Fp4RoundsToTheNearestTiesToEven) {
  const float x[] = {6, 0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5, -0.25f, -5, 0.2500001f, 5.0001f};
  const float expected[] = {6, 0, 1, 1, 2, 2, 4, 4, 0, -4, 0.5f, 6};
  std::vector<float> out(x, x + std::size(x));
  QuantiseFp4(out.data(), static_cast<int64_t>(out.size()));
  for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], expected[i]) << x[i];
}

TEST(QuantiseTest, ScalesArePowersOfTwoOfEachGroup) {
  // 449 needs the scale 2 and so the grid 64; 0.01 in the next group keeps its own scale.
  std::vector<float> x = {449, 33, 97};
  x.resize(64, 0);
  x.push_back(0.01f);
  QuantiseFp8(x.data(), static_cast<int64_t>(x.size()), 64, x.data());
  EXPECT_EQ(x[0], 448);
  EXPECT_EQ(x[1], 32);
  EXPECT_EQ(x[2], 96);
  EXPECT_NEAR(x[64], 0.01f, 0.01f / 16);
  std::vector<float> zero(130, 0);
  QuantiseFp8(zero.data(), 130, kFp8Group, zero.data());
  QuantiseFp4(zero.data(), 130);
  for (float value : zero) EXPECT_EQ(value, 0);
}

TEST(QuantiseTest, IsIdempotentAndBf16Exact) {
  for (float size : {1e-6f, 1e-2f, 1.0f, 300.0f}) {
    std::vector<float> once = Normals(1000, 3, size);
    QuantiseFp8(once.data(), 1000, kFp8KvGroup, once.data());
    std::vector<float> twice = once;
    QuantiseFp8(twice.data(), 1000, kFp8KvGroup, twice.data());
    EXPECT_EQ(once, twice);
    RoundToBf16(twice.data(), 1000);
    EXPECT_EQ(once, twice);
    QuantiseFp4(once.data(), 1000);
    twice = once;
    QuantiseFp4(twice.data(), 1000);
    EXPECT_EQ(once, twice);
  }
}

TEST(PackTest, EntriesAndKeysComeBackBitForBit) {
  EXPECT_EQ(PackedEntryBytes(512, 64), 584);
  EXPECT_EQ(PackedKeyBytes(128), 68);
  std::mt19937 random(21);
  for (const auto& [dim, rope] : {std::pair<int64_t, int64_t>{512, 64}, {64, 16}, {40, 8}}) {
    for (int round = 0; round < 400; ++round) {
      const float size = std::ldexp(1.0f, static_cast<int>(random() % 60) - 40);
      std::vector<float> x = Normals(static_cast<size_t>(dim), random(), size), y(x.size());
      // Zeros of both signs, and a channel far above the others.
      x[random() % 8] = 0.0f;
      x[random() % 8] = -0.0f;
      if (round % 3 == 0) x[random() % x.size()] *= 1e4f;
      if (round % 50 == 0) std::fill(x.begin(), x.end(), round % 100 == 0 ? 0.0f : 1e-9f);
      RoundToBf16(x.data(), dim);
      QuantiseFp8(x.data(), dim - rope, kFp8KvGroup, x.data());
      std::vector<uint8_t> bytes(static_cast<size_t>(PackedEntryBytes(dim, rope)));
      PackEntry(x.data(), dim, rope, bytes.data());
      UnpackEntry(bytes.data(), dim, rope, y.data());
      ASSERT_EQ(std::memcmp(x.data(), y.data(), x.size() * sizeof(float)), 0)
          << dim << ", " << round;
    }
  }
  for (const int64_t dim : {128, 32, 16, 50}) {
    for (int round = 0; round < 400; ++round) {
      const float size = std::ldexp(1.0f, static_cast<int>(random() % 200) - 130);
      std::vector<float> x = Normals(static_cast<size_t>(dim), random(), size), y(x.size());
      x[random() % 8] = -0.0f;
      if (round % 50 == 0) std::fill(x.begin(), x.end(), 0.0f);
      QuantiseFp4(x.data(), dim);
      std::vector<uint8_t> bytes(static_cast<size_t>(PackedKeyBytes(dim)), 0xFF);
      PackKey(x.data(), dim, bytes.data());
      UnpackKey(bytes.data(), dim, y.data());
      ASSERT_EQ(std::memcmp(x.data(), y.data(), x.size() * sizeof(float)), 0)
          << dim << ", " << round;
    }
  }
}

TEST(QuantiseTest, HadamardTwiceIsTheIdentity) {
  const std::vector<float> x = Normals(128, 5);
  std::vector<float> y = x;
  Hadamard(y.data(), 128);
  // The second row of the Sylvester matrix alternates.
  double expected = 0;
  for (int i = 0; i < 128; ++i) expected += i % 2 == 0 ? x[i] : -x[i];
  EXPECT_NEAR(y[1], expected / std::sqrt(128.0), 1e-5);
  Hadamard(y.data(), 128);
  for (int i = 0; i < 128; ++i) EXPECT_NEAR(y[i], x[i], 1e-5);
}

class ScaledMatmulTest : public testing::TestWithParam<WeightType> {};

TEST_P(ScaledMatmulTest, TilesGiveTheBitsOfThePortableLoop) {
  const internal::DotKernels* fast = internal::Avx2Kernels();
  if (fast == nullptr) GTEST_SKIP() << "no AVX2 here";
  const bool fp4 = GetParam() == WeightType::kFp4;
  std::mt19937 random(11);
  for (const int64_t cols : {32, 96, 128, 160, 256, 416}) {
    // FP8 rows end anywhere; those that end with a block take another path.
    const int64_t rows = 139, used = cols - (fp4 || cols % 64 == 32 ? 0 : 5);
    std::vector<uint8_t> codes(static_cast<size_t>(rows * used)),
        scales(static_cast<size_t>(rows * 16));
    for (uint8_t& code : codes) {
      code = static_cast<uint8_t>(random());
      if (!fp4 && (code & 0x7F) == 0x7F) code = 0;
    }
    for (uint8_t& scale : scales) scale = static_cast<uint8_t>(120 + random() % 12);
    Weight w;
    w.data = codes.data();
    w.type = GetParam();
    w.rows = rows;
    w.cols = used;
    w.scales = scales.data();
    w.scale_cols = fp4 ? cols / 32 : (used + 127) / 128;
    w = w.Rows(3, rows - 3);
    for (const int64_t inputs : {1, 2, 3, 4, 7, 8, 41}) {
      std::vector<float> x = Normals(static_cast<size_t>(inputs * used), 13);
      x[3] = 0;
      std::vector<float> a(static_cast<size_t>(inputs * w.rows)), b = a, whole = a;
      fast->matmul(x.data(), used, inputs, w, 0, 57, a.data(), w.rows);
      fast->matmul(x.data(), used, inputs, w, 57, w.rows, a.data(), w.rows);
      internal::PortableKernels().matmul(x.data(), used, inputs, w, 0, w.rows, b.data(), w.rows);
      ASSERT_EQ(a, b) << cols << " columns, " << inputs << " inputs";
      // The same products from a widened copy of the matrix.
      std::vector<float> wide(static_cast<size_t>(w.rows * used));
      for (int64_t row = 0; row < w.rows; ++row)
        internal::PortableKernels().copy_row(w, row, wide.data() + row * used);
      Weight plain;
      plain.data = wide.data();
      plain.rows = w.rows;
      plain.cols = used;
      fast->matmul(x.data(), used, inputs, plain, 0, w.rows, whole.data(), w.rows);
      ASSERT_EQ(a, whole);
    }
  }
}

// Scales and inputs at the edges of float32: there the scale cannot go to the input.
TEST(Fp8MatmulTest, LargeAndSmallScalesGiveTheBitsOfThePortableLoop) {
  const internal::DotKernels* fast = internal::Avx2Kernels();
  if (fast == nullptr) GTEST_SKIP() << "no AVX2 here";
  constexpr int64_t kCols = 256, kRows = 5;
  std::mt19937 random(12);
  std::vector<uint8_t> codes(kCols * kRows), scales(2);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random() % 0x7F);
  Weight w;
  w.data = codes.data();
  w.type = WeightType::kFp8;
  w.rows = kRows;
  w.cols = kCols;
  w.scales = scales.data();
  w.scale_cols = 2;
  for (const int scale : {0, 1, 20, 127, 200, 246}) {
    for (const float size : {1e-38f, 1e-30f, 1e-8f, 1.0f, 1e8f}) {
      scales = {static_cast<uint8_t>(scale), 100};
      std::vector<float> x = Normals(kCols, 14), a(kRows), b(kRows);
      for (float& value : x) value *= size;
      fast->matmul(x.data(), kCols, 1, w, 0, kRows, a.data(), kRows);
      internal::PortableKernels().matmul(x.data(), kCols, 1, w, 0, kRows, b.data(), kRows);
      ASSERT_EQ(std::memcmp(a.data(), b.data(), sizeof(float) * kRows), 0)
          << "scale " << scale << ", inputs of " << size;
    }
  }
}

class PlainMatmulTest : public testing::TestWithParam<WeightType> {};

TEST_P(PlainMatmulTest, TilesGiveTheBitsOfThePortableLoop) {
  const internal::DotKernels* fast = internal::Avx2Kernels();
  if (fast == nullptr) GTEST_SKIP() << "no AVX2 here";
  const bool bf16 = GetParam() == WeightType::kBf16;
  for (const int64_t cols : {1, 7, 8, 61, 96, 640}) {
    const int64_t rows = 75;
    const std::vector<float> values = Normals(static_cast<size_t>(rows * cols), 15);
    std::vector<uint16_t> halves(values.size());
    for (size_t i = 0; i < values.size(); ++i)
      halves[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(values[i]) >> 16);
    Weight w;
    w.data = bf16 ? static_cast<const void*>(halves.data()) : values.data();
    w.type = GetParam();
    w.rows = rows;
    w.cols = cols;
    for (const int64_t inputs : {1, 2, 3, 4, 5, 7, 8, 64, 100}) {
      const std::vector<float> x = Normals(static_cast<size_t>(inputs * cols), 16);
      std::vector<float> a(static_cast<size_t>(inputs * rows)), b = a;
      fast->matmul(x.data(), cols, inputs, w, 0, 33, a.data(), rows);
      fast->matmul(x.data(), cols, inputs, w, 33, rows, a.data(), rows);
      internal::PortableKernels().matmul(x.data(), cols, inputs, w, 0, rows, b.data(), rows);
      ASSERT_EQ(a, b) << cols << " columns, " << inputs << " inputs";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, PlainMatmulTest,
                         testing::Values(WeightType::kF32, WeightType::kBf16),
                         [](const auto& info) {
                           return info.param == WeightType::kF32 ? "f32" : "bf16";
                         });

TEST(ExpTest, IsWithinTwoUnitsInTheLastPlace) {
  double worst = 0;
  for (int i = -859999; i <= 887228; ++i) {
    const float x = static_cast<float>(i) * 1e-4f;
    const double exact = std::exp(static_cast<double>(x));
    const double unit = std::ldexp(1.0, std::ilogb(exact) - 23);
    worst = std::max(worst, std::abs(Exp(x) - exact) / unit);
  }
  EXPECT_LT(worst, 2.0);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_EQ(Exp(-kInfinity), 0.0f);
  EXPECT_EQ(Exp(-100.0f), 0.0f);
  EXPECT_EQ(Exp(kInfinity), kInfinity);
  EXPECT_EQ(Exp(89.0f), kInfinity);
  EXPECT_TRUE(std::isnan(Exp(std::numeric_limits<float>::quiet_NaN())));
}

INSTANTIATE_TEST_SUITE_P(Types, ScaledMatmulTest,
                         testing::Values(WeightType::kFp8, WeightType::kFp4), [](const auto& info) {
                           return info.param == WeightType::kFp8 ? "fp8" : "fp4";
                         });

}  // namespace
}  // namespace reprise::kernels::cpu
