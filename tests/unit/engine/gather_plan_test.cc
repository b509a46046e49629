// The collectives that a plan names, carried out on copies of every rank's memory, against what the
// ranks' own exchange leaves; and what a plan refuses.
#include "engine/parallel/gather_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "tests/unit/engine/mesh_ranks.h"

namespace reprise::engine {
namespace {

// What collectives leave in every rank's memory.
void CarryOut(const GatherPlan& plan, std::vector<std::vector<float>>* memory) {
  const std::vector<std::vector<float>> before = *memory;
  for (size_t rank = 0; rank < memory->size(); ++rank) {
    if (plan.even) {
      // The r-th block of the receiver is rank r's own, which stands where it gathers from.
      const int64_t count = plan.parts[0].count, begin = plan.parts[0].begin;
      for (size_t from = 0; from < memory->size(); ++from) {
        const int64_t at = begin + static_cast<int64_t>(from) * count;
        std::copy_n(before[from].begin() + at, count, (*memory)[rank].begin() + at);
      }
    } else {
      for (const GatherPlan::Part& part : plan.parts)
        std::copy_n(before[part.root].begin() + part.begin, part.count,
                    (*memory)[rank].begin() + part.begin);
    }
  }
}

TEST(GatherPlanTest, LeavesWhatTheRanksExchange) {
  std::mt19937 random(3);
  int even = 0;
  for (const int size : {2, 3, 5}) {
    auto ranks = MakeRanks(size);
    for (int call = 0; call < 40; ++call) {
      std::vector<int64_t> bounds = {static_cast<int64_t>(random() % 9)};
      const int64_t same = static_cast<int64_t>(random() % 50);
      for (int rank = 0; rank < size; ++rank) {
        const int64_t any = static_cast<int64_t>(random() % 3 == 0 ? 0 : random() % 50);
        bounds.push_back(bounds.back() + (call % 2 == 0 ? same : any));
      }
      std::vector<std::vector<float>> exchanged(
          static_cast<size_t>(size),
          std::vector<float>(static_cast<size_t>(bounds.back()) + 2, -1));
      for (int rank = 0; rank < size; ++rank) {
        for (int64_t at = bounds[rank]; at < bounds[rank + 1]; ++at)
          exchanged[rank][at] = static_cast<float>(at * 3 + rank);
      }
      std::vector<std::vector<float>> planned = exchanged;
      std::vector<std::thread> threads;
      for (int rank = 0; rank < size; ++rank) {
        threads.emplace_back([&, rank] { ranks[rank]->AllGather(exchanged[rank].data(), bounds); });
      }
      for (std::thread& thread : threads) thread.join();
      const auto plan = PlanGather(bounds, size);
      ASSERT_TRUE(plan.ok()) << plan.status();
      even += plan->even ? 1 : 0;
      if (!plan->parts.empty()) CarryOut(*plan, &planned);
      ASSERT_EQ(planned, exchanged) << size << " ranks, call " << call;
    }
  }
  EXPECT_GE(even, 50);  // one collective where the parts are equal
}

TEST(GatherPlanTest, RefusesWhatIsNoGather) {
  EXPECT_EQ(PlanGather({0, 4}, 2).status().message(),
            "a gather of 2 ranks has 2 bounds; needed: 3");
  EXPECT_EQ(PlanGather({0, 4, 3}, 2).status().message(),
            "the part of rank 1 in a gather has -1 elements");
  EXPECT_EQ(PlanGather({-1, 4, 5}, 2).status().message(), "a gather begins at -1");
}

}  // namespace
}  // namespace reprise::engine
