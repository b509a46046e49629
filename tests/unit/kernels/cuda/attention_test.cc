// Attention over paged entries in every stored form against the CPU's, bit for bit in reference
// numerics: ragged positions, tokens of a pass beside rings, all blocks or selected ones, none
// valid.
#include "kernels/cuda/attention.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/rope.h"
#include "tests/unit/kernels/cuda/device.h"
#include "tests/unit/kernels/cuda/pages.h"

namespace reprise::kernels {
namespace {

constexpr int64_t kSequences = 3, kWindow = 20, kRing = kWindow + 4, kBlocks = 90;
constexpr int64_t kTopK = 37;

enum class Keys { kWindowOnly, kEveryBlock, kSelected, kNoneValid };

struct Case {
  Keys keys;
  cuda::RowFormat format;
  int64_t dim, rope, heads;
  bool to_bf16;
};

class CudaAttention : public CudaKernels, public testing::WithParamInterface<Case> {
 protected:
  // A vector that its stored form can hold.
  std::vector<float> RandomEntry() {
    const Case& c = GetParam();
    std::vector<float> x = Random(static_cast<size_t>(c.dim));
    if (c.format == cuda::RowFormat::kF32) return x;
    cpu::RoundToBf16(x.data(), c.dim);
    if (c.format == cuda::RowFormat::kPacked)
      cpu::QuantiseFp8(x.data(), c.dim - c.rope, cpu::kFp8KvGroup, x.data());
    return x;
  }

  struct Sequence {
    int64_t start = 0, tokens = 0;
    std::vector<std::vector<float>> entries;  // compressed
    std::vector<std::vector<float>> window;   // by position
  };

  void Make(Pages* ring, Pages* entries) {
    const Case& c = GetParam();
    const int64_t starts[kSequences] = {0, 7, 150}, tokens[kSequences] = {3, 1, 30};
    for (int64_t s = 0; s < kSequences; ++s) {
      Sequence& sequence = sequences_.emplace_back();
      sequence.start = starts[s];
      sequence.tokens = tokens[s];
      for (int64_t w = 0; w < kBlocks; ++w) {
        sequence.entries.push_back(RandomEntry());
        StoreEntry(sequence.entries.back().data(), c.dim, c.rope, c.format, entries->Row(s, w));
      }
      for (int64_t t = 0; t < starts[s] + tokens[s]; ++t) {
        sequence.window.push_back(RandomEntry());
        if (t < starts[s] && t >= starts[s] - kRing)
          StoreEntry(sequence.window.back().data(), c.dim, c.rope, c.format, ring->RingRow(s, t));
      }
    }
  }

  std::vector<Sequence> sequences_;
};

TEST_P(CudaAttention, IsTheCpus) {
  const Case& c = GetParam();
  const int64_t ratio = c.keys == Keys::kWindowOnly ? 0 : 2;
  Pages ring(kSequences, kRing, kRing, EntryBytes(c.format, c.dim, c.rope), c.format, random_);
  Pages entries(kSequences, kBlocks, 16, EntryBytes(c.format, c.dim, c.rope), c.format, random_);
  Make(&ring, &entries);

  std::vector<cuda::AttendToken> tokens;
  std::vector<float> keys, angles;
  std::vector<int32_t> selected;
  for (int64_t s = 0; s < kSequences; ++s) {
    const Sequence& sequence = sequences_[s];
    const int32_t first_row = static_cast<int32_t>(tokens.size());
    for (int64_t i = 0; i < sequence.tokens; ++i) {
      const int64_t position = sequence.start + i;
      tokens.push_back({position, sequence.start, static_cast<int32_t>(s), first_row});
      const std::vector<float>& key = sequence.window[position];
      keys.insert(keys.end(), key.begin(), key.end());
      for (int64_t a = 0; a < c.rope; ++a) angles.push_back(Random(1)[0]);
      std::vector<int32_t> all(static_cast<size_t>((position + 1) / 2));
      for (size_t w = 0; w < all.size(); ++w) all[w] = static_cast<int32_t>(w);
      std::shuffle(all.begin(), all.end(), random_);
      all.resize(c.keys == Keys::kNoneValid ? 0 : std::min<size_t>(all.size(), kTopK));
      std::sort(all.begin(), all.end());
      all.resize(kTopK, -1);
      selected.insert(selected.end(), all.begin(), all.end());
    }
  }
  const int64_t count = static_cast<int64_t>(tokens.size());
  const std::vector<float> q = Random(static_cast<size_t>(count * c.heads * c.dim)),
                           sinks = Random(static_cast<size_t>(c.heads), 2.0f);
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.dim));
  std::vector<float> want(q.size());
  for (int64_t t = 0; t < count; ++t) {
    const cuda::AttendToken& token = tokens[t];
    const Sequence& sequence = sequences_[token.sequence];
    std::vector<const float*> rows;
    for (int64_t at = std::max<int64_t>(0, token.position - kWindow + 1); at <= token.position;
         ++at)
      rows.push_back(sequence.window[at].data());
    if (c.keys == Keys::kEveryBlock) {
      for (int64_t w = 0; w < (token.position + 1) / ratio; ++w)
        rows.push_back(sequence.entries[w].data());
    } else if (c.keys != Keys::kWindowOnly) {
      for (int64_t i = 0; i < kTopK; ++i) {
        const int32_t w = selected[t * kTopK + i];
        if (w >= 0) rows.push_back(sequence.entries[w].data());
      }
    }
    std::vector<float> scratch(static_cast<size_t>(c.heads) * (rows.size() + 1));
    float* out = want.data() + t * c.heads * c.dim;
    cpu::Attend(q.data() + t * c.heads * c.dim, c.heads, c.dim, rows.data(),
                static_cast<int64_t>(rows.size()), sinks.data(), scale, scratch.data(), out,
                c.to_bf16);
    const float* angle = angles.data() + t * c.rope;
    if (c.to_bf16) cpu::RoundToBf16(out, c.heads * c.dim);
    for (int64_t h = 0; h < c.heads; ++h)
      cpu::ApplyRope(out + h * c.dim, c.dim, c.rope / 2, angle, angle + c.rope / 2, true);
    if (c.to_bf16) cpu::RoundToBf16(out, c.heads * c.dim);
  }

  Device<float> dq(q), dkeys(keys), dangles(angles), dsinks(sinks), dout(want.size());
  Device<cuda::AttendToken> dtokens(tokens);
  Device<int32_t> dselected(selected);
  cuda::AttendParams params;
  params.q = dq.get();
  params.tokens = dtokens.get();
  params.keys = dkeys.get();
  params.window = ring.Upload();
  params.entries = entries.Upload();
  if (c.keys == Keys::kSelected || c.keys == Keys::kNoneValid) params.selected = dselected.get();
  params.sinks = dsinks.get();
  params.angles = dangles.get();
  params.out = dout.get();
  params.count = count;
  params.heads = c.heads;
  params.window_tokens = kWindow;
  params.ratio = ratio;
  params.top_k = kTopK;
  params.dim = static_cast<int>(c.dim);
  params.rope = static_cast<int>(c.rope);
  params.scale = scale;
  params.to_bf16 = c.to_bf16;
  ASSERT_STARTED(cuda::Attend(params, nullptr));
  const std::vector<float> got = dout.Read();
  if (c.to_bf16) {
    EXPECT_TRUE(SameBits(got, want));
  } else {
    EXPECT_LT(RelativeError(got, want), kFloatError);
  }
  // A token alone gives what it gave among the others.
  const int64_t last = count - 1;
  params.q += last * c.heads * c.dim;
  params.tokens += last;
  params.angles += last * c.rope;
  if (params.selected != nullptr) params.selected += last * kTopK;
  Device<float> alone(static_cast<size_t>(c.heads * c.dim));
  params.out = alone.get();
  params.count = 1;
  ASSERT_STARTED(cuda::Attend(params, nullptr));
  EXPECT_TRUE(SameBits(alone.Read(), {got.end() - c.heads * c.dim, got.end()}));
}

using cuda::RowFormat;
INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaAttention,
    testing::Values(Case{Keys::kEveryBlock, RowFormat::kPacked, 512, 64, 9, true},
                    Case{Keys::kSelected, RowFormat::kPacked, 512, 64, 4, true},
                    Case{Keys::kWindowOnly, RowFormat::kPacked, 64, 16, 12, true},
                    Case{Keys::kNoneValid, RowFormat::kPacked, 64, 16, 8, true},
                    Case{Keys::kSelected, RowFormat::kBf16, 64, 16, 3, true},
                    Case{Keys::kEveryBlock, RowFormat::kBf16, 96, 32, 8, false},
                    Case{Keys::kEveryBlock, RowFormat::kF32, 64, 16, 8, true},
                    Case{Keys::kSelected, RowFormat::kF32, 40, 8, 10, false},
                    Case{Keys::kNoneValid, RowFormat::kF32, 64, 0, 1, false}));

TEST(CudaLaunchers, AttentionRefusesShapesItCannotDo) {
  cuda::AttendParams params;
  params.window_tokens = 128;
  params.dim = 520;
  EXPECT_EQ(cuda::Attend(params, nullptr).code(), absl::StatusCode::kInvalidArgument);
  params.dim = 12;
  EXPECT_EQ(cuda::Attend(params, nullptr).code(), absl::StatusCode::kInvalidArgument);
  params.dim = 512;
  params.rope = 64;
  EXPECT_TRUE(cuda::Attend(params, nullptr).ok());  // of no tokens
}

}  // namespace
}  // namespace reprise::kernels
