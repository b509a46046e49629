// What makes entries, keys and queries (rotation, rounding, pooling) and the indexer's scores and
// choice, against the CPU's bit for bit.
#include <algorithm>
#include <vector>

#include "kernels/cpu/compressor.h"
#include "kernels/cpu/indexer.h"
#include "kernels/cpu/rmsnorm.h"
#include "kernels/cpu/rope.h"
#include "kernels/cuda/compressor.h"
#include "kernels/cuda/indexer.h"
#include "kernels/cuda/rope.h"
#include "tests/unit/kernels/cuda/device.h"
#include "tests/unit/kernels/cuda/pages.h"

namespace reprise::kernels {
namespace {

using cuda::RowFormat;

TEST_F(CudaKernels, AnglesAreTheCpus) {
  constexpr int64_t kPairs = 32;
  const std::vector<float> frequencies = cpu::RopeFrequencies(2 * kPairs, 160000, nullptr);
  const std::vector<int64_t> positions = {0, 1, 127, 65536, 1048575};
  std::vector<float> want(positions.size() * 2 * kPairs);
  for (size_t i = 0; i < positions.size(); ++i) {
    float* at = want.data() + i * 2 * kPairs;
    cpu::RopeAngles(frequencies.data(), kPairs, positions[i], at, at + kPairs);
  }
  Device<int64_t> dpositions(positions);
  Device<float> dfrequencies(frequencies), angles(want.size());
  ASSERT_STARTED(cuda::RopeAngles({dpositions.get(), dfrequencies.get(), angles.get(),
                                   static_cast<int64_t>(positions.size()), kPairs},
                                  nullptr));
  EXPECT_LT(RelativeError(angles.Read(), want), 1e-6);
}

TEST_F(CudaKernels, QueriesAreTheCpus) {
  constexpr int64_t kRows = 3, kHeads = 5;
  for (const auto& [dim, rope] : {std::pair<int64_t, int64_t>{512, 64}, {40, 8}, {7, 0}}) {
    for (const bool to_bf16 : {false, true}) {
      const std::vector<float> q = Random(kRows * kHeads * dim), angles = Random(kRows * rope + 1);
      std::vector<float> want = q;
      for (int64_t i = 0; i < kRows * kHeads; ++i) {
        float* x = want.data() + i * dim;
        const float* angle = angles.data() + i / kHeads * rope;
        cpu::RmsNorm(x, nullptr, dim, 1e-6f, x);
        if (to_bf16) cpu::RoundToBf16(x, dim);
        cpu::ApplyRope(x, dim, rope / 2, angle, angle + rope / 2, false);
        if (to_bf16) cpu::RoundToBf16(x, dim);
      }
      Device<float> dq(q), dangles(angles);
      ASSERT_STARTED(
          cuda::FinishQueries({dq.get(), dangles.get(), kRows, kHeads, static_cast<int>(dim),
                               static_cast<int>(rope), 1e-6f, to_bf16},
                              nullptr));
      EXPECT_TRUE(SameBits(dq.Read(), want)) << dim;
    }
  }
}

// x as an entry of a quantised checkpoint.
void RoundEntry(float* x, int64_t dim, int64_t rope) {
  cpu::RoundToBf16(x, dim);
  cpu::QuantiseFp8(x, dim - rope, cpu::kFp8KvGroup, x);
}

// x as an indexer's query or key.
void RoundKey(float* x, int64_t dim) {
  cpu::RoundToBf16(x, dim);
  cpu::Hadamard(x, dim);
  cpu::RoundToBf16(x, dim);
  cpu::QuantiseFp4(x, dim);
}

TEST_F(CudaKernels, EntriesAreKeptAsTheCpuKeepsThem) {
  constexpr int64_t kRows = 5, kSequences = 2, kRing = 12;
  for (const auto& [dim, rope] : {std::pair<int64_t, int64_t>{512, 64}, {64, 16}, {40, 8}}) {
    for (const RowFormat format : {RowFormat::kF32, RowFormat::kBf16, RowFormat::kPacked}) {
      const bool quantised = format != RowFormat::kF32;
      const std::vector<float> entries = Random(kRows * dim), angles = Random(kRows * rope);
      const std::vector<int32_t> sequences = {0, 1, 1, 1, 0};
      const std::vector<int64_t> positions = {3, 40, 41, 42, 4};
      std::vector<float> want = entries;
      for (int64_t row = 0; row < kRows; ++row) {
        float* x = want.data() + row * dim;
        const float* angle = angles.data() + row * rope;
        cpu::ApplyRope(x, dim, rope / 2, angle, angle + rope / 2, false);
        if (quantised) RoundEntry(x, dim, rope);
      }
      Pages ring(kSequences, kRing, kRing, EntryBytes(format, dim, rope), format, random_);
      Device<float> dentries(entries), dangles(angles);
      Device<int32_t> dsequences(sequences);
      Device<int64_t> dpositions(positions);
      cuda::FinishEntriesParams params;
      params.entries = dentries.get();
      params.angles = dangles.get();
      params.ring = ring.Upload();
      params.sequences = dsequences.get();
      params.positions = dpositions.get();
      params.rows = kRows;
      params.dim = static_cast<int>(dim);
      params.rope = static_cast<int>(rope);
      params.quantised = quantised;
      ASSERT_STARTED(cuda::FinishEntries(params, nullptr));
      EXPECT_TRUE(SameBits(dentries.Read(), want));
      ring.Download();
      for (int64_t row = 0; row < kRows; ++row) {
        std::vector<float> kept(static_cast<size_t>(dim));
        LoadEntry(ring.RingRow(sequences[row], positions[row]), dim, rope, format, kept.data());
        EXPECT_TRUE(SameBits(kept, {want.begin() + row * dim, want.begin() + (row + 1) * dim}));
      }
    }
  }
}

struct CompressCase {
  int64_t ratio, width, rope;
  bool overlaps, index;
  RowFormat format;
};

class CudaCompressor : public CudaKernels, public testing::WithParamInterface<CompressCase> {};

// Passes of several tokens, the tails between them kept in rings; every block against the CPU's.
TEST_P(CudaCompressor, BlocksAreTheCpus) {
  const CompressCase& c = GetParam();
  const int64_t columns = c.overlaps ? 2 * c.width : c.width, pairs = c.rope / 2;
  const int64_t tail_rows = c.overlaps ? 2 * c.ratio : c.ratio, tokens = 3 * c.ratio + 2;
  const bool quantised = c.format == RowFormat::kPacked;
  const std::vector<float> values = Random(tokens * columns),
                           gates = Random(tokens * columns, 2.0f), bias = Random(c.ratio * columns),
                           norm = Random(c.width);
  std::vector<float> biased = gates;
  for (int64_t i = 0; i < tokens * columns; ++i)
    biased[i] += bias[i / columns % c.ratio * columns + i % columns];
  const int64_t row_bytes = c.format == RowFormat::kF32 ? 4 * c.width
                            : c.index                   ? cpu::PackedKeyBytes(c.width)
                                                        : cpu::PackedEntryBytes(c.width, c.rope);
  Pages out(1, 3, 2, row_bytes, c.format, random_);
  Pages tail_values(1, tail_rows, tail_rows, 4 * columns, RowFormat::kF32, random_);
  Pages tail_gates(1, tail_rows, tail_rows, 4 * columns, RowFormat::kF32, random_);
  const std::vector<float> angles = Random(3 * c.rope);
  cuda::CompressParams params;
  cuda::KeepTailsParams keep;
  params.out = out.Upload();
  params.tail_values = keep.tail_values = tail_values.Upload();
  params.tail_gates = keep.tail_gates = tail_gates.Upload();
  Device<float> dnorm(norm), dbias(bias);
  params.norm = dnorm.get();
  params.ratio = keep.ratio = static_cast<int>(c.ratio);
  params.width = static_cast<int>(c.width);
  params.rope = static_cast<int>(c.rope);
  params.overlaps = c.overlaps;
  params.index = c.index;
  params.quantised = quantised;
  keep.bias = dbias.get();
  keep.columns = static_cast<int>(columns);
  for (int64_t start = 0; start < tokens;) {
    const int64_t end = std::min(tokens, start + 1 + RandomBelow(c.ratio + 2)), rows = end - start;
    const auto part = [&](const std::vector<float>& of) {
      return std::vector<float>(of.begin() + start * columns, of.begin() + end * columns);
    };
    std::vector<cuda::CompressJob> jobs;
    for (int64_t block = start / c.ratio; block < end / c.ratio; ++block)
      jobs.push_back({block, start, 0, 0});
    std::vector<int64_t> positions;
    std::vector<uint8_t> kept;
    for (int64_t t = start; t < end; ++t) {
      positions.push_back(t);
      kept.push_back(t >= end - tail_rows ? 1 : 0);
    }
    Device<float> dvalues(part(values)), dgates(part(gates));
    Device<float> dangles(
        std::vector<float>(angles.begin() + start / c.ratio * c.rope, angles.end()));
    Device<int64_t> dpositions(positions);
    Device<int32_t> dsequences(std::vector<int32_t>(positions.size(), 0));
    Device<uint8_t> dkept(kept);
    Device<cuda::CompressJob> djobs(jobs);
    params.values = keep.values = dvalues.get();
    params.gates = keep.gates = dgates.get();
    params.angles = dangles.get();
    params.jobs = djobs.get();
    params.count = static_cast<int64_t>(jobs.size());
    keep.sequences = dsequences.get();
    keep.positions = dpositions.get();
    keep.keep = dkept.get();
    keep.rows = rows;
    ASSERT_STARTED(cuda::AddPositionBias(keep, nullptr));
    ASSERT_STARTED(cuda::Compress(params, nullptr));
    ASSERT_STARTED(cuda::KeepTails(keep, nullptr));
    start = end;
  }
  out.Download();
  for (int64_t block = 0; block < 3; ++block) {
    std::vector<cpu::PoolRow> rows;
    const int64_t first = block * c.ratio;
    const auto add = [&](int64_t t, int64_t channel) {
      rows.push_back(
          {values.data() + t * columns + channel, biased.data() + t * columns + channel});
    };
    for (int64_t t = first - c.ratio; c.overlaps && block > 0 && t < first; ++t) add(t, 0);
    for (int64_t t = first; t < first + c.ratio; ++t) add(t, c.overlaps ? c.width : 0);
    std::vector<float> scratch(rows.size() * static_cast<size_t>(c.width)),
        want(static_cast<size_t>(c.width)), got(want.size());
    cpu::PoolBlock(rows.data(), static_cast<int64_t>(rows.size()), c.width, scratch.data(),
                   want.data());
    if (quantised) cpu::RoundToBf16(want.data(), c.width);
    cpu::RmsNorm(want.data(), norm.data(), c.width, 1e-6f, want.data());
    if (quantised) cpu::RoundToBf16(want.data(), c.width);
    const float* angle = angles.data() + block * c.rope;
    cpu::ApplyRope(want.data(), c.width, pairs, angle, angle + pairs, false);
    if (quantised && c.index) {
      RoundKey(want.data(), c.width);
      cpu::UnpackKey(out.Row(0, block), c.width, got.data());
    } else {
      if (quantised) RoundEntry(want.data(), c.width, c.rope);
      LoadEntry(out.Row(0, block), c.width, c.rope, c.format, got.data());
    }
    EXPECT_TRUE(SameBits(got, want)) << "block " << block;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaCompressor,
                         testing::Values(CompressCase{4, 512, 64, true, false, RowFormat::kPacked},
                                         CompressCase{4, 128, 64, true, true, RowFormat::kPacked},
                                         CompressCase{128, 512, 64, false, false,
                                                      RowFormat::kPacked},
                                         CompressCase{128, 64, 16, false, false, RowFormat::kF32},
                                         CompressCase{4, 40, 8, true, true, RowFormat::kF32}));

TEST_F(CudaKernels, IndexScoresAreTheCpus) {
  constexpr int64_t kRows = 4, kBlocks = 70, kRatio = 4;
  for (const auto& [dim, heads, quantised] :
       {std::tuple<int64_t, int64_t, bool>{128, 64, true}, {64, 3, true}, {24, 5, false}}) {
    const int64_t rope = 8;
    const RowFormat format = quantised ? RowFormat::kPacked : RowFormat::kF32;
    const std::vector<float> q = Random(kRows * heads * dim), weights = Random(kRows * heads),
                             angles = Random(kRows * rope);
    const std::vector<int32_t> sequences = {1, 0, 1, 0};
    const std::vector<int64_t> positions = {2, 4 * kBlocks - 1, 130, 200};
    Pages keys(2, kBlocks, 32, quantised ? cpu::PackedKeyBytes(dim) : 4 * dim, format, random_);
    std::vector<std::vector<float>> stored(2);
    for (int64_t s = 0; s < 2; ++s) {
      for (int64_t w = 0; w < kBlocks; ++w) {
        std::vector<float> key = Random(static_cast<size_t>(dim));
        if (quantised) {
          RoundKey(key.data(), dim);
          cpu::PackKey(key.data(), dim, keys.Row(s, w));
        } else {
          StoreEntry(key.data(), dim, 0, format, keys.Row(s, w));
        }
        stored[s].insert(stored[s].end(), key.begin(), key.end());
      }
    }
    const float factor = 0.125f;
    std::vector<float> want_q = q, want_weights = weights;
    for (int64_t i = 0; i < kRows * heads; ++i) {
      const float* angle = angles.data() + i / heads * rope;
      cpu::ApplyRope(want_q.data() + i * dim, dim, rope / 2, angle, angle + rope / 2, false);
      if (quantised) RoundKey(want_q.data() + i * dim, dim);
      want_weights[i] *= factor;
      if (quantised) cpu::RoundToBf16(&want_weights[i], 1);
    }
    std::vector<float> want(kRows * kBlocks);
    std::memset(want.data(), 0xFF, want.size() * sizeof(float));
    std::vector<float> scratch(static_cast<size_t>(heads * cpu::kIndexTile));
    for (int64_t row = 0; row < kRows; ++row) {
      cpu::IndexScores(want_q.data() + row * heads * dim, want_weights.data() + row * heads, heads,
                       dim, stored[sequences[row]].data(), (positions[row] + 1) / kRatio,
                       scratch.data(), want.data() + row * kBlocks, quantised);
    }
    Device<float> dq(q), dweights(weights), dangles(angles), scores(want.size());
    Device<int32_t> dsequences(sequences);
    Device<int64_t> dpositions(positions);
    ASSERT_STARTED(
        cuda::IndexQueries({dq.get(), dweights.get(), dangles.get(), kRows, heads,
                            static_cast<int>(dim), static_cast<int>(rope), factor, quantised},
                           nullptr));
    EXPECT_TRUE(SameBits(dq.Read(), want_q));
    EXPECT_TRUE(SameBits(dweights.Read(), want_weights));
    cuda::IndexScoresParams params;
    params.q = dq.get();
    params.weights = dweights.get();
    params.sequences = dsequences.get();
    params.positions = dpositions.get();
    params.keys = keys.Upload();
    params.scores = scores.get();
    params.rows = kRows;
    params.heads = heads;
    params.blocks_max = kBlocks;
    params.ratio = kRatio;
    params.dim = static_cast<int>(dim);
    params.to_bf16 = quantised;
    ASSERT_STARTED(cuda::IndexScores(params, nullptr));
    EXPECT_TRUE(SameBits(scores.Read(), want)) << dim;
  }
}

TEST_F(CudaKernels, SelectsTheBlocksThatTheCpuSelects) {
  constexpr int64_t kBlocks = 1500, kRatio = 4;
  for (const int top_k : {1, 64, 512}) {
    for (const int levels : {0, 1, 5, 40}) {  // of different scores; 0: any
      const std::vector<int64_t> positions = {0, 3, 4 * 64 + 1, 4 * 513, 4 * kBlocks - 1};
      const int64_t rows = static_cast<int64_t>(positions.size());
      std::vector<float> scores = Random(static_cast<size_t>(rows * kBlocks));
      for (float& score : scores) {
        if (levels > 0) score = static_cast<float>(RandomBelow(levels) - levels / 2) * 0.5f;
        if (RandomBelow(50) == 0) score = std::nanf("");
        if (RandomBelow(50) == 0) score = RandomBelow(2) == 0 ? -0.0f : 0.0f;
        if (RandomBelow(50) == 0) score = -INFINITY;
      }
      std::vector<int32_t> want;
      for (int64_t row = 0; row < rows; ++row) {
        std::vector<int32_t> selected;
        cpu::SelectTopK(scores.data() + row * kBlocks, (positions[row] + 1) / kRatio, top_k,
                        &selected);
        selected.resize(static_cast<size_t>(top_k), -1);
        want.insert(want.end(), selected.begin(), selected.end());
      }
      Device<float> dscores(scores);
      Device<int64_t> dpositions(positions);
      Device<int32_t> selected(want.size());
      ASSERT_STARTED(cuda::SelectBlocks(
          {dscores.get(), dpositions.get(), selected.get(), rows, kBlocks, kRatio, top_k},
          nullptr));
      EXPECT_EQ(selected.Read(), want) << "the best " << top_k << " of " << levels << " levels";
    }
  }
}

}  // namespace
}  // namespace reprise::kernels
