// Sampling on the device against the engine's sampler: the same token and the same cut for any
// seed, position, temperature and cut, ties included; and the verification of drafts.
#include "kernels/cuda/sampling.h"

#include <algorithm>
#include <vector>

#include "engine/sampler.h"
#include "tests/unit/kernels/cuda/device.h"

namespace reprise::kernels {
namespace {

class CudaSampling : public CudaKernels {
 protected:
  // Samples the logits in every way, and compares with the engine's.
  std::vector<cuda::SampledRow> Compare(const std::vector<float>& logits, int64_t vocab,
                                        const std::vector<cuda::SampleRow>& how) {
    const int64_t rows = static_cast<int64_t>(how.size());
    std::vector<float> repeated;
    for (int64_t row = 0; row < rows; ++row)
      repeated.insert(repeated.end(), logits.begin(), logits.end());
    Device<float> dlogits(repeated);
    Device<cuda::SampleRow> dhow(how);
    Device<cuda::SampledRow> sampled(how.size());
    const absl::Status started =
        cuda::Sample({dlogits.get(), dhow.get(), sampled.get(), rows, vocab}, nullptr);
    EXPECT_TRUE(started.ok()) << started;
    const std::vector<cuda::SampledRow> got = sampled.Read();
    for (int64_t row = 0; row < rows; ++row) {
      const cuda::SampleRow& at = how[row];
      engine::SamplingParams params;
      params.temperature = at.temperature;
      params.top_p = at.top_p;
      params.min_p = at.min_p;
      params.top_k = at.top_k;
      params.seed = at.seed;
      params.kept_max = engine::kKeptMax;
      const std::vector<int32_t> history(at.position, 0);
      const auto want = engine::Sample(logits, params, history);
      EXPECT_TRUE(want.ok()) << want.status();
      EXPECT_EQ(got[row].id, want->id)
          << "temperature " << at.temperature << ", top_p " << at.top_p << ", min_p " << at.min_p
          << ", top_k " << at.top_k << ", position " << at.position;
      EXPECT_NEAR(got[row].logprob, want->logprob, 1e-6);
      EXPECT_NEAR(got[row].raw_logprob, want->raw_logprob, 1e-6);
      const int32_t kept = at.temperature == 0  ? 1
                           : want->kept.empty() ? static_cast<int32_t>(vocab)
                                                : static_cast<int32_t>(want->kept.size());
      EXPECT_EQ(got[row].kept, kept) << "top_p " << at.top_p << ", top_k " << at.top_k;
    }
    return got;
  }

  std::vector<cuda::SampleRow> EveryWay() {
    std::vector<cuda::SampleRow> how;
    for (const float temperature : {0.0f, 0.6f, 1.7f}) {
      for (const auto& [top_p, min_p, top_k] : {std::tuple<float, float, int32_t>{1, 0, 0},
                                                {0.9f, 0, 0},
                                                {0.05f, 0, 0},
                                                {1, 0.1f, 0},
                                                {1, 0, 7},
                                                {0.7f, 0.01f, 0},
                                                {0.5f, 0, 20},
                                                {0.95f, 0.02f, 100000},
                                                {0.3f, 0.2f, 1}}) {
        how.push_back(
            {random_(), static_cast<uint64_t>(RandomBelow(50)), temperature, top_p, min_p, top_k});
      }
    }
    return how;
  }
};

TEST_F(CudaSampling, DrawsWhatTheEngineDraws) {
  for (const int64_t vocab : {1, 30, 1300}) {
    Compare(Random(static_cast<size_t>(vocab), 2.0f), vocab, EveryWay());
    // Many equals: the lower ids are in.
    std::vector<float> ties(static_cast<size_t>(vocab));
    for (float& logit : ties) logit = static_cast<float>(RandomBelow(5)) - 2.0f;
    Compare(ties, vocab, EveryWay());
  }
}

TEST_F(CudaSampling, DrawsHaveTheDistribution) {
  const std::vector<float> logits = {0.0f, std::log(2.0f), std::log(5.0f)};
  std::vector<cuda::SampleRow> how;
  for (uint64_t position = 0; position < 200; ++position) how.push_back({99, position});
  int count[3] = {};
  for (const cuda::SampledRow& row : Compare(logits, 3, how)) {
    ASSERT_TRUE(row.id >= 0 && row.id < 3);
    ++count[row.id];
  }
  EXPECT_NEAR(count[0], 25, 18);
  EXPECT_NEAR(count[1], 50, 24);
  EXPECT_NEAR(count[2], 125, 28);
}

TEST_F(CudaSampling, DamagedLogitsGiveNoToken) {
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    std::vector<float> logits = Random(600);
    logits[577] = bad;
    Device<float> dlogits(logits);
    Device<cuda::SampleRow> how(std::vector<cuda::SampleRow>(1));
    Device<cuda::SampledRow> sampled(size_t{1});
    ASSERT_STARTED(cuda::Sample({dlogits.get(), how.get(), sampled.get(), 1, 600}, nullptr));
    EXPECT_EQ(sampled.Read()[0].id, -1);
  }
}

TEST_F(CudaSampling, DraftsCountUpToTheFirstThatWasNotSampled) {
  const std::vector<int32_t> first = {0, 1, 3, 5, 9, 9};
  const std::vector<int32_t> fed = {4, 7, 8, 7, 9, 1, 2, 3, 5};
  std::vector<cuda::SampledRow> sampled;
  for (const int32_t id : {11, 8, 12, 8, 13, 2, 3, 4, 6}) sampled.push_back({id, 1, 0, 0});
  Device<int32_t> dfirst(first), dfed(fed), kept(size_t{5});
  Device<cuda::SampledRow> dsampled(sampled);
  ASSERT_STARTED(
      cuda::VerifyDrafts({dfirst.get(), dfed.get(), dsampled.get(), kept.get(), 5}, nullptr));
  // One row; its draft was sampled; its draft was not; two of three drafts; no rows.
  EXPECT_EQ(kept.Read(), (std::vector<int32_t>{1, 2, 1, 3, 0}));
}

}  // namespace
}  // namespace reprise::kernels
