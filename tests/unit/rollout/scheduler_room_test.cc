// Goal: a bound on KV states changes when trajectories run, never what they say; priorities decide
// who goes first. Method: jobs on the tiny model with room for a few of their states.
#include <algorithm>

#include <gtest/gtest.h>

#include "rollout/job_table.h"
#include "tests/unit/rollout/held_sandboxes.h"
#include "tests/unit/rollout/job_files.h"
#include "tests/unit/rollout/scratch_log.h"

namespace reprise::rollout {
namespace {

// Of about three states.
constexpr int64_t kBound = 1 << 20;

class SchedulerRoomTest : public testing::Test {
 protected:
  void TearDown() override { sandboxes_.Shutdown(); }
  // A table on a log and a KV directory of its own.
  struct Table {
    Table(HeldSandboxes* sandboxes, int64_t bound)
        : jobs(log.get(), journal::DURABILITY_NONE, sandboxes, engine::EngineOptions{.threads = 1},
               SchedulerOptions{kv.path(), bound}) {}
    const SchedulerMetrics& metrics() { return jobs.Schedulers()[0].second->metrics(); }
    base::ScratchDir kv{"kv"};
    ScratchLog log;
    JobTable jobs;
  };
  std::shared_ptr<JobRun> Submit(Table* table, const std::string& id, const std::string& top) {
    auto run = table->jobs.Submit(top + std::string(kJobTop) + "[limits]\nmax_tokens = 220\n" +
                                      "max_in_flight = 12\n" +
                                      "[reward]\nkind = \"command\"\ncommand = [\"judge\"]\n",
                                  files_.path(), id, "job.toml");
    EXPECT_TRUE(run.ok()) << run.status();
    return *std::move(run);
  }
  static bool Completed(const JobRun& run) {
    return WaitFor(run, [&] { return run.Is(journal::JOB_STATE_COMPLETED); });
  }
  // What the model said, trajectory by trajectory.
  static std::vector<std::vector<uint32_t>> Said(Table* table, const std::string& id, int count) {
    std::vector<std::vector<uint32_t>> out(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) {
      auto entries = table->log->Read(id + "/000000/" + std::to_string(i));
      EXPECT_TRUE(entries.ok()) << entries.status();
      for (const auto& entry : *entries) {
        for (const auto token : entry.sampled().ids())
          out[static_cast<size_t>(i)].push_back(static_cast<uint32_t>(token));
      }
      EXPECT_FALSE(out[static_cast<size_t>(i)].empty());
    }
    return out;
  }

  JobFiles files_;
  HeldSandboxes sandboxes_;
};

TEST_F(SchedulerRoomTest, ABoundDoesNotChangeAToken) {
  Table free(&sandboxes_, 0), bound(&sandboxes_, kBound);
  const std::string group = "group_size = 12\n";
  const auto expected = Submit(&free, "j", group);
  ASSERT_TRUE(Completed(*expected));
  const auto run = Submit(&bound, "j", group);
  int64_t most = 0;
  ASSERT_TRUE(WaitFor(*run, [&] {
    most = std::max(most, bound.metrics().batch.load());
    return run->Is(journal::JOB_STATE_COMPLETED);
  }));
  EXPECT_LE(most, 4);
  EXPECT_GT(most, 0);
  EXPECT_EQ(Said(&bound, "j", 12), Said(&free, "j", 12));
}

TEST_F(SchedulerRoomTest, ThoseThatWaitOutsideMakeRoom) {
  Table table(&sandboxes_, kBound);
  sandboxes_.Hold(true);
  const auto run = Submit(&table, "j", "group_size = 12\n");
  // More of them come to a call than have room at one time.
  ASSERT_TRUE(WaitFor(*run, [&] { return sandboxes_.calls() >= 5; }));
  EXPECT_GT(table.metrics().preemptions.value(), 0u);
  sandboxes_.Hold(false);
  ASSERT_TRUE(Completed(*run));
  Table free(&sandboxes_, 0);
  ASSERT_TRUE(Completed(*Submit(&free, "j", "group_size = 12\n")));
  EXPECT_EQ(Said(&table, "j", 12), Said(&free, "j", 12));
}

TEST_F(SchedulerRoomTest, TheHigherPriorityGoesFirst) {
  Table table(&sandboxes_, kBound);
  const auto low = Submit(&table, "low", "group_size = 64\npriority = -1\n");
  ASSERT_TRUE(WaitFor(*low, [&] { return low->summary(0).tokens > 0; }));
  const auto high = Submit(&table, "high", "group_size = 4\npriority = 5\n");
  ASSERT_TRUE(Completed(*high));
  EXPECT_FALSE(low->AllSealed());
  EXPECT_GT(table.metrics().preemptions.value(), 0u);
  ASSERT_TRUE(Completed(*low));
}

}  // namespace
}  // namespace reprise::rollout
