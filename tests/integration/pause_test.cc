// Goal: a paused job is on disk, stays paused over a restart, and goes on from its KV states to the
// same bits. Method: rolloutd killed while the job is paused; the records of a run that was never
// paused; states that were damaged or come under newer weights.
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "tests/integration/weights_support.h"

namespace reprise::rollout {
namespace {

namespace fs = std::filesystem;

class PauseTest : public testing::Test {
 protected:
  std::vector<fs::path> States() const {
    std::vector<fs::path> found;
    std::error_code none;
    for (const auto& entry : fs::directory_iterator(state_.path() + "/rolloutd/kv", none)) {
      if (entry.path().extension() == ".kv") found.push_back(entry.path());
    }
    return found;
  }
  // Without what tells of the run itself.
  static std::vector<Json> Bare(std::vector<Json> records) {
    for (Json& record : records) {
      record.erase("timing");
      record.erase("resume");
    }
    return records;
  }
  std::vector<Json> Undisturbed(const std::string& job) {
    base::ScratchDir other("rollout");
    Rolloutd daemon(other.path());
    daemon.Submit(job);
    return Bare(daemon.Finish("p"));
  }
  // Pauses in the middle and kills once the states are on disk.
  void PauseAndKill(const std::string& job) {
    Rolloutd daemon(state_.path());
    daemon.Submit(job);
    daemon.WaitTokens("p", 150);
    daemon.Pause("p");
    // Those that ended before have none.
    for (sealed_ = 0; States().size() + sealed_ < 8;) sealed_ = daemon.Get("p").sealed();
    ASSERT_LT(sealed_, 4u);
  }

  base::ScratchDir files_{"pause"}, state_{"rollout"};
  size_t sealed_ = 0;  // when it was paused
};

TEST_F(PauseTest, APausedJobGoesOnFromDiskWithTheSameBits) {
  const std::string job = HotJob("p", files_.path(), 4, 8);
  PauseAndKill(job);
  Rolloutd daemon(state_.path());
  EXPECT_EQ(daemon.Get("p").state(), "paused");
  EXPECT_EQ(daemon.Get("p").decoded_this_run(), 0u);
  daemon.Resume("p");
  EXPECT_EQ(Bare(daemon.Finish("p")), Undisturbed(job));
  const wire::Job ended = daemon.Get("p");
  EXPECT_EQ(ended.resumed_trajectories(), 8u - sealed_);
  // The newest token of each was in no state yet.
  EXPECT_EQ(ended.prefilled_again(), 8u - sealed_);
  EXPECT_TRUE(States().empty());
}

TEST_F(PauseTest, WithoutItsStatesItIsMadeAgain) {
  const std::string job = HotJob("p", files_.path(), 4, 8);
  PauseAndKill(job);
  const std::vector<fs::path> states = States();
  fs::remove(states[0]);
  fs::resize_file(states[1], fs::file_size(states[1]) / 2);
  fs::copy_file(states[3], states[2], fs::copy_options::overwrite_existing);
  Rolloutd daemon(state_.path());
  daemon.Resume("p");
  EXPECT_EQ(Bare(daemon.Finish("p")), Undisturbed(job));
  EXPECT_GT(daemon.Get("p").prefilled_again(), 100u);
}

TEST_F(PauseTest, NewWeightsMayComeMeanwhile) {
  PauseAndKill(HotJob("p", files_.path(), 4, 8));
  WriteCheckpoint(files_.path() + "/new", 1);
  auto engine = engine::Engine::Load(kTinyModel, {.threads = 1});
  ASSERT_TRUE(engine.ok()) << engine.status();
  auto weights = (*engine)->LoadWeights(files_.path() + "/new");
  ASSERT_TRUE(weights.ok()) << weights.status();
  Rolloutd daemon(state_.path());
  wire::LoadWeightsRequest request;
  request.set_directory(files_.path() + "/new");
  request.set_model(kTinyModel);
  wire::LoadWeightsAnswer answer;
  grpc::ClientContext context;
  ASSERT_TRUE(daemon.stub()->LoadWeights(&context, request, &answer).ok());
  daemon.Resume("p");
  const std::vector<Json> records = daemon.Finish("p");
  for (const Json& record : records) {
    CheckAgainstWeights(record, engine->get(), {{0, (*engine)->weights()}, {1, *weights}});
  }
  EXPECT_EQ(daemon.Get("p").prefilled_again(), 8u - sealed_);
}

}  // namespace
}  // namespace reprise::rollout
