// Ranks that join over NCCL: with a device for each, every rank has all parts afterwards; where one
// has none, all of them learn it and nobody waits.
#include "engine/parallel/nccl.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "tests/unit/engine/mesh_ranks.h"

namespace reprise::engine {
namespace {

int Devices() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess ? devices : 0;
}

// Runs fn(rank) on a thread of each rank.
template <typename Fn>
void OnEachRank(int size, const Fn& fn) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back([&fn, rank] { fn(rank); });
  for (std::thread& thread : threads) thread.join();
}

TEST(NcclTest, ARankWithoutADeviceIsNamedToAll) {
  constexpr int kRanks = 3;
  auto ranks = MakeRanks(kRanks);
  std::vector<absl::Status> got(kRanks);
  const int missing = Devices();
  OnEachRank(kRanks, [&](int rank) {
    // With devices, only the last rank asks for one that is not there.
    const int device = rank == kRanks - 1 ? missing : 0;
    got[rank] = NcclCommunicator::Join(ranks[rank].get(), device).status();
  });
  const char* absent = missing == 0 ? "rank 0 cannot use NCCL" : "rank 2 cannot use NCCL";
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_EQ(got[rank].code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(got[rank].message()), testing::StartsWith(absent));
    EXPECT_TRUE(ranks[rank]->status().ok());  // they can go on without NCCL
  }
}

TEST(NcclTest, EveryRankHasAllPartsAfterwards) {
  const int size = Devices();
  if (size < 2) GTEST_SKIP() << "needs two CUDA devices; here: " << size;
  auto ranks = MakeRanks(size);
  OnEachRank(size, [&](int rank) {
    const auto joined = NcclCommunicator::Join(ranks[rank].get(), rank);
    ASSERT_TRUE(joined.ok()) << joined.status();
    for (const bool even : {true, false}) {
      std::vector<int64_t> bounds = {3};
      for (int r = 0; r < size; ++r) bounds.push_back(bounds.back() + (even ? 100 : 70 * r));
      std::vector<float> host(static_cast<size_t>(bounds.back()), -1), want = host;
      for (int64_t at = bounds[0]; at < bounds[size]; ++at) want[at] = static_cast<float>(at);
      std::copy(want.begin() + bounds[rank], want.begin() + bounds[rank + 1],
                host.begin() + bounds[rank]);
      float* data = nullptr;
      const size_t bytes = host.size() * sizeof(float);
      ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&data), bytes), cudaSuccess);
      ASSERT_EQ(cudaMemcpy(data, host.data(), bytes, cudaMemcpyHostToDevice), cudaSuccess);
      (*joined)->AllGather(data, bounds);
      ASSERT_TRUE((*joined)->status().ok()) << (*joined)->status();
      ASSERT_EQ(cudaMemcpy(host.data(), data, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
      cudaFree(data);
      EXPECT_EQ(host, want);
    }
  });
}

}  // namespace
}  // namespace reprise::engine
