// Products and what stands around them (rounding to FP8, the experts' order and sum) against the
// CPU's, bit for bit, over random and ragged shapes.
#include "kernels/cuda/matmul.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/combine.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/quantise.h"
#include "kernels/cpu/rmsnorm.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/quantise.h"
#include "kernels/formats.h"
#include "tests/unit/kernels/cuda/device.h"
#include "tests/unit/kernels/cuda/random_weight.h"

namespace reprise::kernels {
namespace {

int64_t Groups(int64_t n) { return (n + cuda::kFp8Group - 1) / cuda::kFp8Group; }

// The values of FP8 rows.
std::vector<float> Widen(const std::vector<uint8_t>& codes, const std::vector<uint8_t>& scales,
                         int64_t n) {
  std::vector<float> out(codes.size());
  for (size_t i = 0; i < codes.size(); ++i) {
    const int64_t row = static_cast<int64_t>(i) / n, column = static_cast<int64_t>(i) % n;
    out[i] = WidenE4m3(codes[i]) * WidenE8m0(scales[row * Groups(n) + column / cuda::kFp8Group]);
  }
  return out;
}

std::vector<float> Quantised(std::vector<float> x, int64_t n) {
  for (size_t at = 0; at < x.size(); at += static_cast<size_t>(n))
    cpu::QuantiseFp8(x.data() + at, n, cpu::kFp8Group, x.data() + at);
  return x;
}

TEST_F(CudaKernels, QuantisesAsTheCpuDoes) {
  constexpr int64_t kRows = 3;
  for (const int64_t n : {1, 100, 128, 129, 1024, 2176}) {
    for (const float size : {0.0f, 1e-6f, 1.0f, 1e4f}) {
      const std::vector<float> x = Random(kRows * n, size);
      Device<float> dx(x);
      Device<uint8_t> codes(static_cast<size_t>(kRows * n)),
          scales(static_cast<size_t>(kRows * Groups(n)));
      ASSERT_STARTED(cuda::QuantiseFp8({dx.get(), {codes.get(), scales.get()}, kRows, n}, nullptr));
      EXPECT_TRUE(SameBits(Widen(codes.Read(), scales.Read(), n), Quantised(x, n)))
          << n << " values of size " << size;
    }
  }
}

TEST_F(CudaKernels, NormAndQuantiseInOne) {
  constexpr int64_t kRows = 4;
  for (const int64_t n : {64, 300, 1536, 4096}) {
    const std::vector<float> x = Random(kRows * n), weight = Random(n);
    std::vector<float> want(x.size());
    for (int64_t row = 0; row < kRows; ++row) {
      cpu::RmsNorm(x.data() + row * n, weight.data(), n, 1e-6f, want.data() + row * n);
      cpu::RoundToBf16(want.data() + row * n, n);
    }
    Device<float> dx(x), dweight(weight), dnormalised(x.size());
    Device<uint8_t> codes(x.size()), scales(static_cast<size_t>(kRows * Groups(n)));
    cuda::RmsNormQuantiseParams params;
    params.x = dx.get();
    params.weight = dweight.get();
    params.normalised = dnormalised.get();
    params.out = {codes.get(), scales.get()};
    params.rows = kRows;
    params.n = n;
    ASSERT_STARTED(cuda::RmsNormQuantise(params, nullptr));
    const std::vector<float> normalised = dnormalised.Read();
    EXPECT_LT(RelativeError(normalised, want), kBf16Error);
    EXPECT_TRUE(SameBits(Widen(codes.Read(), scales.Read(), n), Quantised(normalised, n))) << n;
  }
}

class CudaMatmul : public CudaKernels, public testing::WithParamInterface<WeightType> {};

TEST_P(CudaMatmul, IsTheCpusBitForBit) {
  const bool fp4 = GetParam() == WeightType::kFp4;
  for (const int64_t cols : {32, 96, 160, 416}) {
    const int64_t used = cols - (fp4 || cols % 64 == 32 ? 0 : 5), w_rows = 139;
    const RandomWeight weight(GetParam(), w_rows, used, random_);
    for (const int64_t rows : {1, 3, 4, 5, 16, 41}) {
      const std::vector<float> x = Random(rows * used);
      const int64_t y_rows = w_rows - 3;
      std::vector<float> want(static_cast<size_t>(rows * y_rows));
      cpu::Matmul(x.data(), used, rows, weight.host().Rows(3, y_rows), 0, y_rows, want.data(),
                  y_rows);
      Device<float> dx(x), y(want.size());
      cuda::MatmulParams params;
      params.in.x = dx.get();
      params.in.stride = used;
      params.w = weight.device().Rows(3, y_rows);
      params.y = y.get();
      params.rows = rows;
      params.y_stride = y_rows;
      ASSERT_STARTED(cuda::Matmul(params, nullptr));
      EXPECT_TRUE(SameBits(y.Read(), want)) << used << " columns, " << rows << " rows";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaMatmul,
                         testing::Values(WeightType::kF32, WeightType::kBf16, WeightType::kFp8,
                                         WeightType::kFp4));

// FP8 times FP8, as a linear layer of the model: both with scales, the result to bfloat16.
TEST_F(CudaKernels, Fp8LinearIsTheCpusBitForBit) {
  constexpr int64_t kRows = 6, kCols = 384, kOut = 130;
  const RandomWeight weight(WeightType::kFp8, kOut, kCols, random_);
  const std::vector<float> x = Random(kRows * kCols);
  std::vector<float> want(kRows * kOut);
  cpu::Matmul(Quantised(x, kCols).data(), kCols, kRows, weight.host(), 0, kOut, want.data(), kOut);
  cpu::RoundToBf16(want.data(), kRows * kOut);
  Device<float> dx(x), y(want.size());
  Device<uint8_t> codes(x.size()), scales(static_cast<size_t>(kRows * Groups(kCols)));
  ASSERT_STARTED(cuda::QuantiseFp8({dx.get(), {codes.get(), scales.get()}, kRows, kCols}, nullptr));
  cuda::MatmulParams params;
  params.in = {nullptr, codes.get(), scales.get(), kCols, Groups(kCols)};
  params.w = weight.device();
  params.y = y.get();
  params.rows = kRows;
  params.y_stride = kOut;
  params.to_bf16 = true;
  ASSERT_STARTED(cuda::Matmul(params, nullptr));
  EXPECT_TRUE(SameBits(y.Read(), want));
}

// The grouped output projection: each group of heads has rows of the matrix of its own.
TEST_F(CudaKernels, GroupsSideBySideAreTheCpus) {
  constexpr int64_t kRows = 5, kGroups = 4, kWidth = 96, kOut = 33;
  const RandomWeight weight(WeightType::kBf16, kGroups * kOut, kWidth, random_);
  const std::vector<float> x = Random(kRows * kGroups * kWidth);
  std::vector<float> want(kRows * kGroups * kOut);
  for (int64_t g = 0; g < kGroups; ++g) {
    cpu::Matmul(x.data() + g * kWidth, kGroups * kWidth, kRows, weight.host().Rows(g * kOut, kOut),
                0, kOut, want.data() + g * kOut, kGroups * kOut);
  }
  Device<float> dx(x), y(want.size());
  cuda::MatmulParams params;
  params.in.x = dx.get();
  params.in.stride = kGroups * kWidth;
  params.w = weight.device();
  params.y = y.get();
  params.rows = kRows;
  params.y_stride = kGroups * kOut;
  params.groups = kGroups;
  ASSERT_STARTED(cuda::Matmul(params, nullptr));
  EXPECT_TRUE(SameBits(y.Read(), want));
  params.groups = 5;
  EXPECT_EQ(cuda::Matmul(params, nullptr).message(),
            "Matmul: needs groups that divide the weight's rows");
}

// Experts' rows, whatever the experts: each slot stands in one tile of its own expert, once, and
// the tiles fit where TilesMax says.
TEST_F(CudaKernels, ExpertTilesHoldEverySlotOnce) {
  for (const int experts : {1, 7, 256}) {
    for (const int64_t tokens : {1, 16, 40}) {
      for (const bool uneven : {false, true}) {
        const int k = experts == 1 ? 1 : 6;
        const int64_t slots = tokens * k;
        std::vector<uint16_t> chosen(static_cast<size_t>(slots));
        for (uint16_t& expert : chosen)
          expert = static_cast<uint16_t>(uneven ? experts - 1 : RandomBelow(experts));
        const size_t tiles_max = static_cast<size_t>(cuda::TilesMax(slots, experts));
        Device<uint16_t> dchosen(chosen);
        Device<int32_t> slot_at(chosen.size()), token_at(chosen.size()), place_of(chosen.size());
        Device<int32_t> tiles(tiles_max * 3);
        cuda::PlanExpertsParams params;
        params.chosen = dchosen.get();
        params.slot_at = slot_at.get();
        params.token_at = token_at.get();
        params.place_of = place_of.get();
        params.tiles = reinterpret_cast<cuda::ExpertTile*>(tiles.get());
        params.tokens = tokens;
        params.experts = experts;
        params.k = k;
        ASSERT_STARTED(cuda::PlanExperts(params, nullptr));
        const std::vector<int32_t> slot = slot_at.Read(), token = token_at.Read(),
                                   place = place_of.Read(), tile = tiles.Read();
        std::vector<int> seen(chosen.size(), 0);
        for (size_t i = 0; i < tiles_max; ++i) {
          const int32_t expert = tile[3 * i], first = tile[3 * i + 1], rows = tile[3 * i + 2];
          ASSERT_TRUE(rows >= 0 && rows <= cuda::kExpertTileRows);
          for (int32_t at = first; at < first + rows; ++at) {
            ASSERT_EQ(chosen[slot[at]], expert);
            ASSERT_EQ(token[at], slot[at] / k);
            ASSERT_EQ(place[slot[at]], at);
            ASSERT_TRUE(at == first || slot[at - 1] < slot[at]);
            ++seen[slot[at]];
          }
        }
        EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), slots);
      }
    }
  }
}

// The products of a layer's routed experts, from the router's choice to their sum: FP4 weights, FP8
// inputs, few and many tokens an expert.
TEST_F(CudaKernels, ExpertsAreTheCpus) {
  constexpr int kExperts = 9, kChosen = 3;
  constexpr int64_t kCols = 160, kOut = 70;
  std::vector<std::unique_ptr<RandomWeight>> weights;
  std::vector<const void*> data;
  std::vector<const uint8_t*> scales;
  for (int e = 0; e < kExperts; ++e) {
    weights.push_back(std::make_unique<RandomWeight>(WeightType::kFp4, kOut, kCols, random_));
    data.push_back(weights.back()->device().data);
    scales.push_back(weights.back()->device().scales);
  }
  Device<const void*> ddata(data);
  Device<const uint8_t*> dscales(scales);
  for (const int64_t tokens : {1, 2, 19, 60}) {
    const int64_t slots = tokens * kChosen;
    const std::vector<float> x = Random(tokens * kCols), shared = Random(tokens * kOut);
    std::vector<uint16_t> chosen;
    for (int64_t t = 0; t < tokens; ++t) {
      // Expert 4 is everybody's; three of them have nobody.
      chosen.push_back(4);
      chosen.push_back(static_cast<uint16_t>(RandomBelow(3)));
      chosen.push_back(static_cast<uint16_t>(6 + RandomBelow(2)));
    }
    const std::vector<float> rounded = Quantised(x, kCols);
    std::vector<float> want = shared;
    for (int64_t t = 0; t < tokens; ++t) {
      std::vector<float> terms(kChosen * kOut);
      std::vector<const float*> at;
      for (int64_t i = 0; i < kChosen; ++i) {
        at.push_back(terms.data() + i * kOut);
        cpu::Matmul(rounded.data() + t * kCols, kCols, 1, weights[chosen[t * kChosen + i]]->host(),
                    0, kOut, terms.data() + i * kOut, kOut);
      }
      cpu::RoundToBf16(terms.data(), kChosen * kOut);
      cpu::RoundToBf16(want.data() + t * kOut, kOut);
      cpu::AddRows(at.data(), kChosen, kOut, want.data() + t * kOut);
      cpu::RoundToBf16(want.data() + t * kOut, kOut);
    }
    Device<float> dx(x), routed(static_cast<size_t>(slots * kOut)), out(shared);
    Device<uint8_t> codes(x.size()), code_scales(static_cast<size_t>(tokens * Groups(kCols)));
    Device<uint16_t> dchosen(chosen);
    Device<int32_t> slot_at(chosen.size()), token_at(chosen.size()), place_of(chosen.size());
    const int64_t tiles_max = cuda::TilesMax(slots, kExperts);
    Device<int32_t> tiles(static_cast<size_t>(tiles_max) * 3);
    cuda::PlanExpertsParams plan;
    plan.chosen = dchosen.get();
    plan.slot_at = slot_at.get();
    plan.token_at = token_at.get();
    plan.place_of = place_of.get();
    plan.tiles = reinterpret_cast<cuda::ExpertTile*>(tiles.get());
    plan.tokens = tokens;
    plan.experts = kExperts;
    plan.k = kChosen;
    ASSERT_STARTED(cuda::PlanExperts(plan, nullptr));
    ASSERT_STARTED(
        cuda::QuantiseFp8({dx.get(), {codes.get(), code_scales.get()}, tokens, kCols}, nullptr));
    cuda::GroupedMatmulParams product;
    product.in = {nullptr, codes.get(), code_scales.get(), kCols, Groups(kCols)};
    product.row_of = token_at.get();
    product.tiles = plan.tiles;
    product.data = ddata.get();
    product.scales = dscales.get();
    product.shape = weights[0]->device();
    product.y = routed.get();
    product.tiles_max = tiles_max;
    product.y_stride = kOut;
    ASSERT_STARTED(cuda::GroupedMatmul(product, nullptr));
    ASSERT_STARTED(cuda::CombineExperts(
        {routed.get(), place_of.get(), out.get(), tokens, kOut, kChosen}, nullptr));
    EXPECT_TRUE(SameBits(out.Read(), want)) << tokens << " tokens";
    // Weights in the order of places.
    const std::vector<float> weight = Random(slots);
    Device<float> dweight(weight), placed(weight.size());
    ASSERT_STARTED(
        cuda::GatherWeights({dweight.get(), slot_at.get(), placed.get(), slots}, nullptr));
    const std::vector<float> got = placed.Read();
    const std::vector<int32_t> slot = slot_at.Read();
    for (int64_t i = 0; i < slots; ++i) ASSERT_EQ(got[i], weight[slot[i]]);
  }
}

}  // namespace
}  // namespace reprise::kernels
