// Goal: new weights come in between two tokens, at once or not at all, and every token and
// log-probability is that of the version that its record names, also after a kill at any moment of
// an update. Method: rolloutd as a process on the tiny model and on checkpoints that differ from
// it; whole records are drawn again by an engine of the test.
#include <filesystem>
#include <set>

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "tests/integration/weights_support.h"

namespace reprise::rollout {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class WeightsTest : public testing::Test {
 protected:
  void SetUp() override {
    for (int variant : {1, 2}) WriteCheckpoint(Checkpoint(variant), variant);
    auto engine = engine::Engine::Load(kTinyModel, {.threads = 1, .prefix_cache_bytes = 0});
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    weights_[0] = engine_->weights();
    for (int variant : {1, 2}) {
      auto loaded = engine_->LoadWeights(Checkpoint(variant));
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      weights_[static_cast<uint64_t>(variant)] = *std::move(loaded);
    }
  }
  // Of version `variant` in every test.
  std::string Checkpoint(int variant) const {
    return files_.path() + "/weights-" + std::to_string(variant);
  }
  std::string Job(const std::string& id, int tasks, int in_flight, const std::string& more = "") {
    return HotJob(id, files_.path(), tasks, in_flight, more);
  }
  // The versions that tokens were sampled under.
  static std::set<uint64_t> Versions(const Json& record) {
    std::set<uint64_t> versions;
    for (const Json& span : record["version_spans"]) versions.insert(span[0].get<uint64_t>());
    return versions;
  }
  void Check(const std::vector<Json>& records) {
    for (const Json& record : records) CheckAgainstWeights(record, engine_.get(), weights_);
  }
  static size_t Mixed(const std::vector<Json>& records) {
    return static_cast<size_t>(
        std::count_if(records.begin(), records.end(),
                      [](const Json& record) { return Versions(record).size() > 1; }));
  }
  void ExpectOk(const grpc::Status& status) { ASSERT_TRUE(status.ok()) << status.error_message(); }

  base::ScratchDir files_{"weights"}, state_{"rollout"};
  std::unique_ptr<engine::Engine> engine_;
  std::map<uint64_t, std::shared_ptr<const engine::Weights>> weights_;
};

TEST_F(WeightsTest, RunningSequencesGoOnUnderTheNewVersionWithTheirStates) {
  Rolloutd daemon(state_.path());
  daemon.Submit(Job("keep", 8, 16));
  daemon.WaitTokens("keep", 200);
  daemon.Pause("keep");
  wire::LoadWeightsAnswer answer;
  ExpectOk(daemon.Load(Checkpoint(1), &answer));
  EXPECT_EQ(answer.version().version(), 1u);
  EXPECT_EQ(answer.version().digest(), weights_[1]->digest());
  EXPECT_GT(answer.switched(), 0u);
  EXPECT_EQ(answer.draining(), 0u);
  daemon.Resume("keep");
  daemon.WaitTokens("keep", 700);
  ExpectOk(daemon.Load(Checkpoint(2), &answer, "continue", "keep", 2));
  const std::vector<Json> records = daemon.Finish("keep");
  ASSERT_EQ(records.size(), 16u);
  EXPECT_GT(Mixed(records), 0u);
  for (const Json& record : records) {
    for (const Json& change : record["weight_switches"]) EXPECT_GT(change["kv_kept"], 0);
  }
  Check(records);
}

TEST_F(WeightsTest, StatesAreMadeAgainWhereTheJobSaysSo) {
  Rolloutd daemon(state_.path());
  daemon.Submit(Job("recompute", 6, 12, "[weights]\nkv = \"recompute\"\n"));
  daemon.WaitTokens("recompute", 200);
  wire::LoadWeightsAnswer answer;
  ExpectOk(daemon.Load(Checkpoint(1), &answer));
  const std::vector<Json> records = daemon.Finish("recompute");
  EXPECT_GT(Mixed(records), 0u);
  for (const Json& record : records) {
    for (const Json& change : record["weight_switches"]) EXPECT_EQ(change["kv_kept"], 0);
  }
  Check(records);
}

TEST_F(WeightsTest, DrainingSequencesEndUnderTheirVersionAndNewOnesBeginUnderTheNew) {
  Rolloutd daemon(state_.path());
  daemon.Submit(Job("drain", 8, 4));
  daemon.WaitTokens("drain", 100);
  wire::LoadWeightsAnswer answer;
  ExpectOk(daemon.Load(Checkpoint(1), &answer, "drain"));
  EXPECT_EQ(answer.switched(), 0u);
  EXPECT_GT(answer.draining(), 0u);
  const std::vector<Json> records = daemon.Finish("drain");
  EXPECT_EQ(Mixed(records), 0u);
  std::set<uint64_t> versions;
  for (const Json& record : records) versions.merge(Versions(record));
  EXPECT_EQ(versions, (std::set<uint64_t>{0, 1}));
  Check(records);
}

TEST_F(WeightsTest, SequencesThatAreTooOldEnd) {
  Rolloutd daemon(state_.path());
  daemon.Submit(Job("stale", 6, 6, "[weights]\nmax_staleness = 1\n"));
  daemon.WaitTokens("stale", 60);
  daemon.Pause("stale");
  wire::LoadWeightsAnswer answer;
  ExpectOk(daemon.Load(Checkpoint(1), &answer));
  EXPECT_EQ(answer.stale(), 0u);
  ExpectOk(daemon.Load(Checkpoint(2), &answer));
  EXPECT_GT(answer.stale(), 0u);
  daemon.Resume("stale");
  size_t stale = 0;
  for (const Json& record : daemon.Finish("stale")) {
    if (record["stop_reason"] != "stale") continue;
    ++stale;
    EXPECT_EQ(record["status"], "aborted");
    EXPECT_EQ(record["valid"], false);
    EXPECT_TRUE(record["reward"].is_null());
  }
  EXPECT_EQ(stale, answer.stale());
}

TEST_F(WeightsTest, WhatCannotBeLoadedIsRefusedAndTheOldWeightsServeOn) {
  namespace fs = std::filesystem;
  Rolloutd daemon(state_.path());
  daemon.Submit(Job("bad", 8, 4));
  daemon.WaitTokens("bad", 20);
  const std::string bad = files_.path() + "/bad";
  auto refused = [&](const std::string& text, uint64_t version = 0) {
    wire::LoadWeightsAnswer answer;
    const grpc::Status status = daemon.Load(bad, &answer, "", "", version);
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(status.error_message(), AllOf(HasSubstr(text), Not(HasSubstr("\n"))));
  };
  refused("bad");  // there is none
  WriteCheckpoint(bad, 3);
  fs::resize_file(bad + "/model.safetensors", fs::file_size(bad + "/model.safetensors") - 1000);
  refused("model.safetensors");
  fs::remove_all(bad);
  WriteCheckpoint(bad, 3);
  std::string config = *base::ReadFile(bad + "/config.json");
  const size_t at = config.find("\"index_topk\": 16");
  ASSERT_NE(at, std::string::npos);
  config.replace(at, 16, "\"index_topk\": 17");
  ASSERT_TRUE(base::WriteFileAtomic(bad + "/config.json", config).ok());
  refused("config.json describes another architecture");
  fs::remove_all(bad);
  WriteCheckpoint(bad, 3);
  wire::LoadWeightsAnswer answer;
  ExpectOk(daemon.Load(Checkpoint(1), &answer, "drain", "", 7));
  refused("weight version 7 is not above 7", 7);
  refused("weight version 3 is not above 7", 3);
  // The same again is no error.
  ExpectOk(daemon.Load(Checkpoint(1), &answer, "drain", "", 7));
  EXPECT_EQ(answer.version().version(), 7u);
  weights_[7] = weights_[1];
  const std::vector<Json> records = daemon.Finish("bad");
  EXPECT_EQ(records.size(), 16u);
  Check(records);
}

// Killed at every moment of an update, with sequences under way; what runs on says which weights
// made what, and draws the same.
class WeightsCrashTest : public WeightsTest, public testing::WithParamInterface<std::string> {};

TEST_P(WeightsCrashTest, AKillInAnUpdateLosesNothing) {
  const std::string policy = "[weights]\nkv = \"keep\"\n";
  {
    Rolloutd daemon(state_.path(), GetParam());
    daemon.Submit(Job("crash", 24, 12, policy));
    daemon.WaitTokens("crash", 150);
    wire::LoadWeightsAnswer answer;
    const grpc::Status status = daemon.Load(Checkpoint(1), &answer);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
    daemon.WaitKilled();
  }
  {
    // In the middle again, so that states of two versions are rebuilt.
    Rolloutd daemon(state_.path());
    wire::ShowWeightsResponse shown;
    grpc::ClientContext context;
    ExpectOk(daemon.stub()->ShowWeights(&context, wire::ShowWeightsRequest(), &shown));
    const bool recorded = GetParam() != "weights.loaded:1";
    EXPECT_EQ(shown.versions_size(), recorded ? 2 : 1);
    // A trainer that does not know asks again.
    wire::LoadWeightsAnswer answer;
    ExpectOk(daemon.Load(Checkpoint(1), &answer, "", "", 1));
    daemon.WaitTokens("crash", daemon.Get("crash").sampled_tokens() + 100);
  }
  Rolloutd daemon(state_.path());
  const std::vector<Json> records = daemon.Finish("crash");
  ASSERT_EQ(records.size(), 48u);
  EXPECT_GT(Mixed(records), 0u);
  for (const Json& record : records) EXPECT_EQ(record["valid"], true);
  Check(records);
  EXPECT_EQ(daemon.Get("crash").decoded_again(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Moments, WeightsCrashTest,
                         testing::Values("weights.loaded:1", "weights.recorded:1",
                                         "weights.switched:1"),
                         [](const auto& test) {
                           std::string name = test.param.substr(8);
                           return name.substr(0, name.find(':'));
                         });

TEST_F(WeightsTest, WithoutTheOldWeightsAJobSaysWhichItNeeds) {
  {
    Rolloutd daemon(state_.path());
    daemon.Submit(Job("gone", 4, 8));
    daemon.WaitTokens("gone", 60);
    wire::LoadWeightsAnswer answer;
    ExpectOk(daemon.Load(Checkpoint(1), &answer));
    daemon.WaitTokens("gone", 200);
    ExpectOk(daemon.Load(Checkpoint(2), &answer));
  }
  std::filesystem::rename(Checkpoint(1), Checkpoint(1) + "-away");
  {
    Rolloutd daemon(state_.path());
    const wire::Job job = daemon.Get("gone");
    EXPECT_EQ(job.state(), "failed");
    EXPECT_THAT(job.message(), AllOf(HasSubstr("weight version 1"), HasSubstr(Checkpoint(1)),
                                     Not(HasSubstr("\n"))));
  }
  std::filesystem::rename(Checkpoint(1) + "-away", Checkpoint(1));
  Rolloutd daemon(state_.path());
  daemon.Resume("gone");
  const std::vector<Json> records = daemon.Finish("gone");
  EXPECT_EQ(records.size(), 8u);
  Check(records);
}

}  // namespace
}  // namespace reprise::rollout
