// Goal: a trajectory's log comes back gap-free and in order, adds up to the right state, refuses
// what cannot follow, and exports to the same bytes however often its owner died. Method: a small
// hand-made trajectory.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "replay/export.h"
#include "replay/sha256.h"
#include "replay/trajectory_log.h"
#include "replay/trajectory_state.h"

namespace reprise::replay {
namespace {

using Entry = journal::TrajectoryEntry;

Entry Start() {
  Entry entry;
  auto* start = entry.mutable_start();
  start->set_trajectory_id("job/000001/2");
  start->set_job_id("job");
  start->set_group(1);
  start->set_sample(2);
  start->set_task_id("t1");
  start->set_seed(18446744073709551615ull);
  for (int id : {0, 10, 11}) start->add_prompt_ids(id);
  return entry;
}

Entry Sampled(uint64_t position, std::vector<int> ids, uint64_t version = 7) {
  Entry entry;
  auto* sampled = entry.mutable_sampled();
  sampled->set_position(position);
  sampled->set_weight_version(version);
  for (int id : ids) {
    sampled->add_ids(id);
    sampled->add_logprobs(-0.1f * static_cast<float>(id));
  }
  return entry;
}

Entry Issued() {
  Entry entry;
  entry.mutable_issued()->set_call_id("job/000001/2/0/0");
  entry.mutable_issued()->set_tool("sh");
  entry.mutable_issued()->set_arguments_json("{\"command\": \"x\"}");
  return entry;
}

Entry Done(const std::string& text, bool replayed) {
  Entry entry;
  entry.mutable_done()->set_call_id("job/000001/2/0/0");
  entry.mutable_done()->set_outcome(::reprise::sandbox::v1::OUTCOME_EXITED);
  entry.mutable_done()->set_result_text(text);
  entry.mutable_done()->set_replayed(replayed);
  return entry;
}

Entry Fed(uint64_t position) {
  Entry entry;
  entry.mutable_fed()->set_position(position);
  entry.mutable_fed()->add_ids(20);
  entry.mutable_fed()->add_call_ids("job/000001/2/0/0");
  return entry;
}

Entry Resumed(uint64_t at) {
  Entry entry;
  entry.mutable_resumed()->set_at_token(at);
  entry.mutable_resumed()->set_cause("restart");
  return entry;
}

Entry Seal() {
  Entry entry;
  entry.mutable_sealed()->set_status("completed");
  entry.mutable_sealed()->set_stop_reason("stop");
  return entry;
}

std::vector<Entry> Whole(bool crashed) {
  std::vector<Entry> log = {Start(), Sampled(3, {1, 2}), Sampled(5, {3})};
  if (crashed) log.push_back(Resumed(6));
  log.push_back(Issued());
  log.push_back(Done("bad \xff utf8", crashed));
  log.push_back(Fed(6));
  if (crashed) log.push_back(Resumed(7));
  log.push_back(Sampled(7, {4}, 8));
  Entry reward;
  reward.mutable_reward()->set_has_value(true);
  reward.mutable_reward()->set_value(0.25f);
  log.push_back(reward);
  log.push_back(Seal());
  return log;
}

TEST(TrajectoryState, AddsUp) {
  auto state = Fold(Whole(false));
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->tokens, (std::vector<int32_t>{0, 10, 11, 1, 2, 3, 20, 4}));
  EXPECT_EQ(state->loss_mask, (std::vector<uint8_t>{0, 0, 0, 1, 1, 1, 0, 1}));
  EXPECT_FLOAT_EQ(state->logprobs[4], -0.2f);
  EXPECT_EQ(state->logprobs[6], 0.0f);
  ASSERT_EQ(state->version_spans.size(), 2u);
  EXPECT_EQ(state->version_spans[0].end, 6u);
  EXPECT_EQ(state->version_spans[1].version, 8u);
  ASSERT_EQ(state->segments.size(), 4u);
  EXPECT_EQ(state->segments[1].end, 6u);
  EXPECT_EQ(state->turns, 2u);
}

TEST(TrajectoryState, RefusesWhatCannotFollow) {
  auto refused = [](std::vector<Entry> log) {
    return Fold(log).status().code() == absl::StatusCode::kDataLoss;
  };
  EXPECT_TRUE(refused({Sampled(0, {1})}));
  EXPECT_TRUE(refused({Start(), Start()}));
  EXPECT_TRUE(refused({Start(), Sampled(4, {1})}));
  EXPECT_TRUE(refused({Start(), Sampled(3, {})}));
  EXPECT_TRUE(refused({Start(), Done("", false)}));
  EXPECT_TRUE(refused({Start(), Issued(), Issued()}));
  EXPECT_TRUE(refused({Start(), Issued(), Done("", false), Done("", false)}));
  EXPECT_TRUE(refused({Start(), Fed(9)}));
  EXPECT_TRUE(refused({Start(), Seal(), Resumed(3)}));
  EXPECT_TRUE(refused({Start(), Entry()}));
}

TEST(Export, IsTheSameWhateverCrashed) {
  ExportContext context;
  context.run_id = "job";
  context.group_size = 4;
  context.without_timing = true;
  auto quiet = Fold(Whole(false));
  auto crashed = Fold(Whole(true));
  ASSERT_TRUE(quiet.ok() && crashed.ok());
  auto a = ExportRecordJson(*quiet, context);
  auto b = ExportRecordJson(*crashed, context);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(*a, *b);

  context.without_timing = false;
  auto record = nlohmann::json::parse(*ExportRecordJson(*crashed, context));
  EXPECT_EQ(record["schema"], "rollout.v1");
  EXPECT_EQ(record["token_ids"].size(), 8u);
  EXPECT_EQ(record["prompt_ids"].size() + record["response_ids"].size(), 8u);
  EXPECT_EQ(record["loss_mask"][3], 1);
  EXPECT_EQ(record["logprobs"][3].get<float>(), -0.1f);
  EXPECT_EQ(record["weight_versions"][6], -1);
  EXPECT_EQ(record["seed"], 18446744073709551615ull);
  EXPECT_EQ(record["reward"], 0.25);
  EXPECT_TRUE(record["valid"]);
  EXPECT_EQ(record["resume"].size(), 2u);
  EXPECT_EQ(record["tool_calls"][0]["result"], "bad \xef\xbf\xbd utf8");
  EXPECT_EQ(record["digest"], Hex(TrajectoryDigest(*quiet)));
}

TEST(Export, WhatMasksLeftIsOfEveryToken) {
  TrajectoryState state;
  Entry masked = Sampled(4, {12, 13});
  masked.mutable_sampled()->add_allowed_counts(5);
  masked.mutable_sampled()->add_allowed_logprobs(-0.25f);
  for (const Entry& entry : {Start(), Sampled(3, {9})}) ASSERT_TRUE(state.Apply(entry).ok());
  EXPECT_EQ(state.Apply(masked).code(), absl::StatusCode::kDataLoss);
  masked.mutable_sampled()->add_allowed_counts(0);
  masked.mutable_sampled()->add_allowed_logprobs(0);
  for (const Entry& entry : {masked, Sampled(6, {14}), Seal()})
    ASSERT_TRUE(state.Apply(entry).ok());
  const auto record = nlohmann::json::parse(*ExportRecordJson(state, ExportContext()));
  EXPECT_EQ(record["allowed_counts"], (nlohmann::json{0, 0, 0, 0, 5, 0, 0}));
  EXPECT_EQ(record["allowed_logprobs"], (nlohmann::json{0, 0, 0, 0, -0.25, 0, 0}));
}

TEST(Export, NoRewardIsNullAndInfrastructureIsNotValid) {
  std::vector<Entry> log = {Start(), Sampled(3, {1})};
  Entry reward;
  reward.mutable_reward()->set_failure("grader died");
  log.push_back(reward);
  Entry seal = Seal();
  seal.mutable_sealed()->set_failure_kind("grader");
  log.push_back(seal);
  auto record = nlohmann::json::parse(*ExportRecordJson(*Fold(log), {}));
  EXPECT_TRUE(record["reward"].is_null());
  EXPECT_FALSE(record["valid"]);
  EXPECT_TRUE(record["failure"]["retriable"]);
  log.pop_back();
  EXPECT_EQ(ExportRecordJson(*Fold(log), {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(Digest, ChangesWithEveryPart) {
  auto base = *Fold(Whole(false));
  const std::string digest = TrajectoryDigest(base);
  auto changed = [&](auto change) {
    TrajectoryState state = base;
    change(&state);
    return TrajectoryDigest(state) != digest;
  };
  EXPECT_TRUE(changed([](auto* s) { s->tokens[4] = 9; }));
  EXPECT_TRUE(changed([](auto* s) { s->loss_mask[4] = 0; }));
  EXPECT_TRUE(changed([](auto* s) { s->logprobs[4] = -0.21f; }));
  EXPECT_TRUE(changed([](auto* s) { s->version_spans[0].version = 1; }));
  EXPECT_TRUE(changed([](auto* s) { s->routed_experts = "r"; }));
}

class TrajectoryLogTest : public testing::Test {
 protected:
  void SetUp() override { Reopen(); }
  void Reopen() {
    log_.reset();
    store_.reset();
    storage::StoreOptions options;
    options.path = dir_.path();
    options.families = TrajectoryLogFamilies();
    store_ = std::move(*storage::Store::Open(options));
    log_ = std::move(*TrajectoryLog::Open(store_.get()));
  }
  base::ScratchDir dir_;
  std::unique_ptr<storage::Store> store_;
  std::unique_ptr<TrajectoryLog> log_;
};

TEST_F(TrajectoryLogTest, KeepsOrderAndRefusesWrongNumbers) {
  ASSERT_TRUE(
      log_->AppendAll({{"j/1", 0, Start()}, {"j/1", 1, Sampled(3, {1})}, {"j/10", 0, Start()}})
          .ok());
  EXPECT_EQ(log_->AppendAll({{"j/1", 3, Seal()}}).code(), absl::StatusCode::kInvalidArgument);
  // A refused batch leaves nothing behind, also of its good members.
  EXPECT_FALSE(log_->AppendAll({{"j/1", 2, Sampled(4, {1})}, {"j/10", 5, Seal()}}).ok());
  ASSERT_TRUE(log_->AppendAll({{"j/1", 2, Sampled(4, {2})}}).ok());
  Reopen();
  EXPECT_FALSE(log_->AppendAll({{"j/1", 2, Seal()}}).ok());
  ASSERT_TRUE(log_->AppendAll({{"j/1", 3, Seal()}}).ok());
  auto entries = log_->Read("j/1");
  ASSERT_TRUE(entries.ok());
  EXPECT_EQ(entries->size(), 4u);
  EXPECT_EQ(log_->Read("j").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(*log_->List("j"), (std::vector<std::string>{"j/1", "j/10"}));
  EXPECT_TRUE(log_->List("other")->empty());
}

TEST_F(TrajectoryLogTest, JobsComeBack) {
  EXPECT_EQ(log_->GetJob("a").status().code(), absl::StatusCode::kNotFound);
  journal::JobRecord job;
  job.set_job_id("a");
  job.set_spec_toml("x = 1");
  ASSERT_TRUE(log_->PutJob(job).ok());
  Reopen();
  EXPECT_EQ(log_->GetJob("a")->spec_toml(), "x = 1");
  EXPECT_EQ(log_->ListJobs()->size(), 1u);
}

}  // namespace
}  // namespace reprise::replay
