// Goal: a job run by both daemons gives whole, exact records, the same bytes for the same seed
// whatever happened on the way, and obeys pause, resume and cancel. Method: the tiny model on its
// own tasks; every record is checked against the engine and the documented digest.
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <set>
#include <sstream>

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_replace.h"
#include "engine/config.h"
#include "engine/engine.h"
#include "replay/sha256.h"
#include "tests/integration/rollout_daemons.h"

namespace reprise::rollout {
namespace {

using testing::HasSubstr;

std::string SmallJob(const std::string& id, uint64_t seed, int in_flight = 8) {
  return JobTop(id, seed, 0, 4, 2) +
         "[limits]\nmax_tokens = 400\nmax_turns = 6\nmax_in_flight = " + std::to_string(in_flight) +
         "\n[output]\nrouted_experts = true\n" + ShTool(kRunShell);
}

template <typename T>
std::string Packed(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

std::string Routes(const Json& record) {
  std::string data;
  EXPECT_TRUE(
      absl::Base64Unescape(record["routed_experts"]["data_base64"].get<std::string>(), &data));
  return data;
}

// The digest of replay/FORMAT.md, from the record alone. REQUIRES: a little-endian host.
std::string DigestOf(const Json& record) {
  replay::Sha256 hash;
  hash.AddSized("rollout.v1");
  hash.AddU64(record["prompt_len"].get<uint64_t>());
  hash.AddSized(Packed(record["token_ids"].get<std::vector<int32_t>>()));
  hash.AddSized(Packed(record["loss_mask"].get<std::vector<uint8_t>>()));
  hash.AddSized(Packed(record["logprobs"].get<std::vector<float>>()));
  hash.AddU64(record["version_spans"].size());
  for (const Json& span : record["version_spans"]) {
    for (int i = 0; i < 3; ++i) hash.AddU64(span[i].get<uint64_t>());
  }
  hash.AddSized(Routes(record));
  return replay::Hex(hash.Finish());
}

// The bytes of a job's records with its id replaced wherever it stands.
std::string Renamed(std::string bytes, const std::string& id) {
  absl::StrReplaceAll({{"\"" + id + "/", "\"job/"}, {"\"" + id + "\"", "\"job\""}}, &bytes);
  return bytes;
}

class RolloutTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "the function tier needs root";
  }
  base::ScratchDir state_{"rollout"};
};

// What every record holds, whatever its trajectory did.
void CheckShape(const Json& record) {
  const auto ids = record["token_ids"].get<std::vector<int32_t>>();
  const size_t prompt = record["prompt_len"];
  ASSERT_GT(ids.size(), prompt);
  ASSERT_EQ(record["loss_mask"].size(), ids.size());
  ASSERT_EQ(record["logprobs"].size(), ids.size());
  ASSERT_EQ(record["weight_versions"].size(), ids.size());
  EXPECT_EQ(record["prompt_ids"].size(), prompt);
  EXPECT_EQ(record["response_ids"].size(), ids.size() - prompt);
  size_t at = 0;
  for (const Json& segment : record["segments"]) {
    ASSERT_EQ(segment["start"], at);
    const bool sampled = segment["role"] == "sampled";
    for (; at < segment["end"].get<size_t>(); ++at) {
      EXPECT_EQ(record["loss_mask"][at], sampled ? 1 : 0);
      EXPECT_EQ(record["weight_versions"][at], sampled ? 0 : -1);
      EXPECT_TRUE(sampled || record["logprobs"][at] == 0.0);
    }
  }
  EXPECT_EQ(at, ids.size());
  for (const Json& call : record["tool_calls"]) {
    const size_t begin = call["span"][0], end = call["span"][1];
    EXPECT_LT(begin, end);
    for (size_t i = begin; i < end; ++i) EXPECT_EQ(record["loss_mask"][i], 1);
  }
  EXPECT_EQ(record["digest"], DigestOf(record));
}

// Log-probabilities and routes are those of the model over these tokens.
void CheckAgainstModel(const Json& record, engine::Engine* engine) {
  const auto ids = record["token_ids"].get<std::vector<int32_t>>();
  auto logits = engine->Logits(ids);
  ASSERT_TRUE(logits.ok()) << logits.status();
  const size_t vocab = static_cast<size_t>(engine->vocab_size());
  for (size_t i = record["prompt_len"]; i < ids.size(); ++i) {
    if (record["loss_mask"][i] == 0) continue;
    const float* row = logits->data() + (i - 1) * vocab;
    double sum = 0;
    for (size_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(row[v]));
    EXPECT_NEAR(record["logprobs"][i].get<double>(), row[ids[i]] - std::log(sum), 1e-5) << i;
  }

  auto sequence = engine->NewSequence();
  std::vector<engine::StepItem> items(1);
  items[0].sequence = sequence.get();
  items[0].tokens = absl::MakeConstSpan(ids).first(ids.size() - 1);
  items[0].want_routes = true;
  ASSERT_TRUE(engine->Step(absl::MakeSpan(items)).ok());
  const engine::ModelConfig& config = engine->config();
  const Json& routes = record["routed_experts"];
  EXPECT_EQ(routes["dtype"], "uint8");
  EXPECT_EQ(routes["shape"], (Json{ids.size() - 1, config.num_layers, config.experts_per_token}));
  EXPECT_EQ(routes["recorded"], ids.size() - 1);
  const std::string bytes = Routes(record);
  ASSERT_EQ(bytes.size(), items[0].routes.size());
  for (size_t i = 0; i < bytes.size(); ++i) {
    ASSERT_EQ(static_cast<uint8_t>(bytes[i]), items[0].routes[i]) << i;
  }
}

TEST_F(RolloutTest, ASmallJobGivesWholeRecords) {
  Daemons daemons(state_.path());
  Daemons::Ended ended = daemons.Run(SmallJob("small", 7));
  EXPECT_EQ(ended.job.state(), "completed");
  EXPECT_EQ(ended.job.sealed(), 8u);
  EXPECT_EQ(ended.job.failed(), 0u);
  EXPECT_EQ(ended.job.decoded_again(), 0u);
  ASSERT_EQ(ended.records.size(), 8u);

  auto engine = engine::Engine::Load(kTinyModel, {.threads = 1, .max_context = 0});
  ASSERT_TRUE(engine.ok()) << engine.status();
  std::set<std::string> digests;
  uint64_t sampled = 0, calls = 0;
  double rewards = 0;
  for (size_t i = 0; i < ended.records.size(); ++i) {
    const Json& record = ended.records[i];
    SCOPED_TRACE(record["rollout_id"].get<std::string>());
    EXPECT_EQ(record["schema"], "rollout.v1");
    EXPECT_EQ(record["run_id"], "small");
    EXPECT_EQ(record["group_ordinal"], i / 2);
    EXPECT_EQ(record["sample_idx"], i % 2);
    EXPECT_EQ(record["group_size"], 2);
    EXPECT_EQ(record["task"]["key"], "test-000" + std::to_string(i / 2 + 1));
    EXPECT_EQ(record["task"]["dataset"], "test.jsonl");
    EXPECT_EQ(record["valid"], true);
    EXPECT_TRUE(record["reward"].is_number());
    EXPECT_TRUE(record["failure"].is_null());
    EXPECT_EQ(record["engine"]["model"], (*engine)->digest());
    EXPECT_EQ(record["engine"]["tokenizer"], (*engine)->tokenizer().digest());
    EXPECT_GT(record["timing"]["total_ms"], 0.0);
    CheckShape(record);
    CheckAgainstModel(record, engine->get());
    digests.insert(record["digest"].get<std::string>());
    for (const Json& bit : record["loss_mask"]) sampled += bit.get<uint64_t>();
    calls += record["tool_calls"].size();
    rewards += record["reward"].get<double>();
    // What the call printed is what the model was shown.
    for (const Json& call : record["tool_calls"]) {
      if (call["outcome"] != "EXITED") continue;
      EXPECT_THAT(record["response_text"].get<std::string>(),
                  HasSubstr("<tool_result>" + call["result"].get<std::string>()));
    }
  }
  EXPECT_GE(digests.size(), 4u);  // samples of one task may agree, tasks never do
  EXPECT_GT(calls, 0u);
  EXPECT_EQ(ended.job.sampled_tokens(), sampled);
  EXPECT_EQ(ended.job.tool_calls(), calls);
  EXPECT_NEAR(ended.job.mean_reward(), rewards / 8, 1e-9);
}

TEST_F(RolloutTest, TheSeedAloneDecidesTheBytes) {
  std::string first;
  {
    Daemons daemons(state_.path());
    first = daemons.Run(SmallJob("seeded", 7, 8), true).bytes;
  }
  base::ScratchDir other_state("rollout");
  Daemons daemons(other_state.path(), 1);
  EXPECT_EQ(daemons.Run(SmallJob("seeded", 7, 1), true).bytes, first);
  Daemons::Ended other = daemons.Run(SmallJob("other", 8), true);
  std::vector<Json> expected;
  std::istringstream lines(first);
  for (std::string line; std::getline(lines, line);) expected.push_back(Json::parse(line));
  ASSERT_EQ(other.records.size(), expected.size());
  size_t same = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(other.records[i]["prompt_ids"], expected[i]["prompt_ids"]);
    same += other.records[i]["logprobs"] == expected[i]["logprobs"];
  }
  EXPECT_LT(same, expected.size());
}

TEST_F(RolloutTest, ARestartedDaemonEndsWithTheSameBytes) {
  std::string expected;
  {
    base::ScratchDir quiet("rollout");
    Daemons daemons(quiet.path());
    expected = daemons.Run(SmallJob("again", 3), true).bytes;
  }
  {
    Daemons daemons(state_.path());
    daemons.Submit(SmallJob("again", 3));
    daemons.WaitTokens("again", 40);
    EXPECT_LT(daemons.Get("again").sealed(), 8u);
  }
  Daemons daemons(state_.path());
  Daemons::Ended ended = daemons.Finish("again", true);
  EXPECT_EQ(ended.bytes, expected);
  EXPECT_GT(ended.job.resumed_trajectories(), 0u);
  EXPECT_EQ(ended.job.decoded_again(), 0u);
}

TEST_F(RolloutTest, PauseStopsResumeGoesOnWithTheSameBytes) {
  Daemons daemons(state_.path());
  const std::string expected = daemons.Run(SmallJob("a", 5), true).bytes;
  // The same trajectories under another id, one at a time, paused in the middle.
  daemons.Submit(SmallJob("b", 5, 1));
  daemons.WaitTokens("b", 20);
  wire::PauseJobRequest pause;
  pause.set_job_id("b");
  wire::Job job;
  grpc::ClientContext pausing;
  ASSERT_TRUE(daemons.stub()->Pause(&pausing, pause, &job).ok());
  EXPECT_EQ(job.state(), "paused");
  EXPECT_LT(job.sealed(), 8u);
  wire::ResumeJobRequest resume;
  resume.set_job_id("b");
  grpc::ClientContext resuming;
  ASSERT_TRUE(daemons.stub()->Resume(&resuming, resume, &job).ok());
  EXPECT_EQ(job.state(), "running");
  const std::string bytes = daemons.Finish("b", true).bytes;
  EXPECT_EQ(Renamed(bytes, "b"), Renamed(expected, "a"));
}

TEST_F(RolloutTest, CancelSealsWhatIsUnfinished) {
  Daemons daemons(state_.path());
  daemons.Submit(SmallJob("c", 5, 1));
  daemons.WaitTokens("c", 20);
  wire::CancelJobRequest cancel;
  cancel.set_job_id("c");
  wire::Job job;
  grpc::ClientContext context;
  ASSERT_TRUE(daemons.stub()->Cancel(&context, cancel, &job).ok());
  EXPECT_EQ(job.state(), "cancelled");
  wire::ExportRequest request;
  request.set_job_id("c");
  request.set_follow(true);
  grpc::ClientContext exporting;
  auto reader = daemons.stub()->Export(&exporting, request);
  size_t records = 0, aborted = 0;
  for (wire::ExportedTrajectory trajectory; reader->Read(&trajectory); ++records) {
    const Json record = Json::parse(trajectory.json());
    if (record["status"] != "aborted") continue;
    ++aborted;
    EXPECT_EQ(record["finish_reason"], "aborted");
    EXPECT_EQ(record["valid"], false);
    EXPECT_TRUE(record["reward"].is_null());
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(records, 8u);
  EXPECT_GT(aborted, 0u);
  EXPECT_EQ(daemons.Get("c").sealed(), 8u);
}

}  // namespace
}  // namespace reprise::rollout
