// Goal: a call id runs once however many ask for it, everybody gets every byte, a slow or vanished
// reader harms nobody, and each way to end is told as it was. Method: the real journal and managers
// on a scripted tier that does what each test says, when it says so.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "tests/unit/sandboxd/node.h"

namespace reprise::sandboxd {
namespace {

constexpr sandbox::Stream kOut = sandbox::STREAM_STDOUT, kErr = sandbox::STREAM_STDERR;

// Bytes that tell their own offset, so that a piece in the wrong place is seen.
std::string Pattern(size_t bytes, size_t begin = 0) {
  std::string data;
  data.reserve(bytes);
  for (size_t i = begin; i < begin + bytes; ++i) {
    data.push_back(static_cast<char>((i * 31 + (i >> 8) * 7 + (i >> 16)) & 0xff));
  }
  return data;
}

std::string Text(const absl::Status& status) { return std::string(status.message()); }

class CallsTest : public testing::Test {
 protected:
  void SetUp() override { node_.MakeBox(); }
  Received Run(const sandbox::ExecuteRequest& request) {
    return Node::Read(node_.calls().Execute(request));
  }
  // Runs a call to its end with this output.
  Received RunToEnd(const std::string& id, const std::string& out, const std::string& err = "") {
    auto stream = node_.calls().Execute(Node::Request(id));
    node_.tier().WaitStarted(id);
    node_.tier().Emit(id, kOut, out);
    node_.tier().Emit(id, kErr, err);
    node_.tier().End(id);
    return Node::Read(stream);
  }
  Node node_;
};

TEST_F(CallsTest, ThirtyTwoCallersOfOneIdRunItOnce) {
  constexpr int kCallers = 32;
  for (int round = 0; round < 10; ++round) {
    const std::string id = "traj/" + std::to_string(round);
    std::vector<Received> got(kCallers);
    std::vector<std::thread> callers;
    for (int i = 0; i < kCallers; ++i) {
      callers.emplace_back([&, i] { got[i] = Run(Node::Request(id)); });
    }
    node_.tier().WaitStarted(id);
    const std::string data = Pattern(100000);
    node_.tier().Emit(id, kOut, data.substr(0, 40000));
    node_.tier().Emit(id, kErr, "warning");
    node_.tier().Emit(id, kOut, data.substr(40000));
    node_.tier().End(id, sandbox::OUTCOME_EXITED, 3);
    for (std::thread& caller : callers) caller.join();
    int first = 0;
    for (const Received& one : got) {
      ASSERT_TRUE(one.status.ok()) << one.status;
      EXPECT_EQ(one.out, data);
      EXPECT_EQ(one.err, "warning");
      EXPECT_EQ(one.result.exit_code(), 3);
      EXPECT_EQ(one.result.stdout_bytes(), data.size());
      EXPECT_EQ(one.result.replayed(), one.started.replayed());
      first += !one.started.attached() && !one.started.replayed();
    }
    EXPECT_EQ(first, 1);
    EXPECT_EQ(node_.tier().starts(id), 1);
  }
  EXPECT_EQ(node_.log().begins(), 10);
  EXPECT_EQ(node_.log().completes(), 10);
  EXPECT_EQ(node_.tier().reserved(), 0);
}

TEST_F(CallsTest, AnAttachedReaderGetsEverythingFromByteZero) {
  auto first = node_.calls().Execute(Node::Request("c"));
  node_.tier().WaitStarted("c");
  node_.tier().Emit("c", kOut, "before ");
  EXPECT_EQ(Node::ReadSome(first, 7), "before ");
  auto second = node_.calls().Attach("c");
  auto third = node_.calls().Execute(Node::Request("c"));
  EXPECT_EQ(Node::ReadSome(second, 7), "before ");
  node_.tier().Emit("c", kOut, "after");
  node_.tier().End("c");
  EXPECT_EQ(Node::Read(second).out, "after");
  Received all = Node::Read(third);
  EXPECT_EQ(all.out, "before after");
  EXPECT_TRUE(all.started.attached());
  EXPECT_FALSE(all.result.replayed());
  EXPECT_EQ(Node::Read(first).out, "after");
  EXPECT_EQ(Node::Read(node_.calls().Attach("none")).status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Node::Read(node_.calls().Attach("../c")).status.code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(CallsTest, AFinishedCallIsReplayedByteForByteAlsoAfterARestart) {
  const std::string out = Pattern(5u << 20), err = Pattern(70000, 5);
  Received live = RunToEnd("c", out, err);
  ASSERT_TRUE(live.status.ok()) << live.status;
  EXPECT_EQ(live.out, out);
  for (int round = 0; round < 2; ++round) {
    Received replay = Run(Node::Request("c"));
    ASSERT_TRUE(replay.status.ok()) << replay.status;
    EXPECT_TRUE(replay.started.replayed());
    EXPECT_TRUE(replay.result.replayed());
    EXPECT_TRUE(replay.out == out);
    EXPECT_TRUE(replay.err == err);
    replay.result.set_replayed(false);
    EXPECT_EQ(replay.result.SerializeAsString(), live.result.SerializeAsString());
    node_.Restart();
  }
  EXPECT_EQ(node_.tier().starts("c"), 1);
}

TEST_F(CallsTest, AnotherRequestUnderTheSameIdIsADivergence) {
  sandbox::ExecuteRequest request = Node::Request("c");
  sandbox::EnvVar* secret = request.add_env();
  secret->set_name("TOKEN");
  secret->set_value("hunter2hunter2");
  secret->set_secret(true);
  auto stream = node_.calls().Execute(request);
  node_.tier().WaitStarted("c");
  sandbox::ExecuteRequest other = request;
  other.add_argv("-x");
  sandbox::ExecuteRequest other_secret = request;
  other_secret.mutable_env(0)->set_value("xyzzy-value");
  for (bool finished : {false, true}) {
    if (finished) {
      node_.tier().End("c");
      EXPECT_TRUE(Node::Read(stream).status.ok());
    }
    Received got = Run(other);
    EXPECT_EQ(got.status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(Text(got.status).rfind("divergence: argv", 0), 0u) << got.status;
    got = Run(other_secret);
    EXPECT_EQ(got.status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(Text(got.status).find("xyzzy"), std::string::npos) << got.status;
    EXPECT_EQ(Text(got.status).find("hunter2"), std::string::npos) << got.status;
  }
  EXPECT_TRUE(Run(request).result.replayed());
  EXPECT_EQ(node_.tier().starts("c"), 1);
}

TEST_F(CallsTest, OutputAboveTheCapKeepsItsTail) {
  sandbox::ExecuteRequest request = Node::Request("c");
  request.mutable_limits()->set_output_bytes_kept(200000);
  auto stream = node_.calls().Execute(request);
  node_.tier().WaitStarted("c");
  const std::string data = Pattern(2u << 20);
  for (size_t at = 0; at < data.size(); at += 50000) {
    node_.tier().Emit("c", kOut, data.substr(at, 50000));
  }
  node_.tier().End("c", sandbox::OUTCOME_OUTPUT_TRUNCATED);
  Received live = Node::Read(stream);
  ASSERT_TRUE(live.status.ok()) << live.status;
  EXPECT_EQ(live.result.outcome(), sandbox::OUTCOME_OUTPUT_TRUNCATED);
  EXPECT_TRUE(live.out == data.substr(live.out_begin));
  Received replay = Run(request);
  EXPECT_TRUE(replay.result.truncated());
  EXPECT_EQ(replay.result.stdout_bytes(), data.size());
  EXPECT_GT(replay.out_begin, 0u);
  EXPECT_LE(replay.out.size(), 200000u);
  EXPECT_GE(replay.out.size(), 200000u - (64u << 10));
  EXPECT_TRUE(replay.out == data.substr(replay.out_begin));
}

TEST_F(CallsTest, ASlowReaderHoldsUpNobodyAndStillGetsEveryByte) {
  auto slow = node_.calls().Execute(Node::Request("c"));
  node_.tier().WaitStarted("c");
  const std::string data = Pattern(24u << 20);
  for (size_t at = 0; at < data.size(); at += 1u << 20) {
    node_.tier().Emit("c", kOut, data.substr(at, 1u << 20));
  }
  node_.tier().End("c");
  node_.tier().WaitReleased("c");  // ended, and the slow reader has taken nothing yet
  EXPECT_EQ(node_.tier().acknowledged("c", kOut), data.size());
  Received got = Node::Read(slow);
  ASSERT_TRUE(got.status.ok()) << got.status;
  EXPECT_TRUE(got.out == data);
  EXPECT_EQ(got.result.outcome(), sandbox::OUTCOME_EXITED);
}

TEST_F(CallsTest, OutputIsAcknowledgedOnlyOnceTheJournalHasIt) {
  auto stream = node_.calls().Execute(Node::Request("c"));
  node_.tier().WaitStarted("c");
  node_.log().HoldOutput(true);
  constexpr size_t kPiece = 64u << 10, kAll = 32u << 20;
  std::atomic<size_t> emitted{0};
  std::thread program([&] {
    while (emitted < kAll) {
      node_.tier().Emit("c", kOut, Pattern(kPiece, emitted));
      emitted += kPiece;
    }
  });
  while (emitted < Call::kPendingBytesMax) std::this_thread::yield();
  EXPECT_EQ(node_.tier().acknowledged("c", kOut), 0u);
  // One batch is on its way to the journal, another waits, and the program is held up.
  EXPECT_LE(emitted, 2 * Call::kPendingBytesMax + 2 * kPiece);
  node_.log().HoldOutput(false);
  program.join();
  node_.tier().End("c");
  EXPECT_TRUE(Node::Read(stream).out == Pattern(kAll));
}

TEST_F(CallsTest, AReaderThatGoesAwayStopsNothing) {
  auto gone = node_.calls().Execute(Node::Request("c"));
  node_.tier().WaitStarted("c");
  gone->Fail(absl::CancelledError("the client went away"));
  node_.tier().Emit("c", kOut, "kept");
  node_.tier().End("c");
  Received got = node_.Finish("c");
  EXPECT_TRUE(got.status.ok()) << got.status;
  EXPECT_EQ(got.out, "kept");
}

TEST_F(CallsTest, EveryOutcomeIsToldAsItWas) {
  for (int value = sandbox::OUTCOME_EXITED; value <= sandbox::OUTCOME_CANCELLED; ++value) {
    const auto outcome = static_cast<sandbox::Outcome>(value);
    const std::string id = sandbox::Outcome_Name(outcome);
    auto stream = node_.calls().Execute(Node::Request(id));
    node_.tier().WaitStarted(id);
    node_.tier().End(id, outcome, 7);
    Received live = Node::Read(stream);
    EXPECT_TRUE(live.status.ok()) << live.status;
    EXPECT_EQ(live.result.outcome(), outcome) << id;
    EXPECT_EQ(Run(Node::Request(id)).result.outcome(), outcome) << id;
  }
}

TEST_F(CallsTest, WhatCannotStartIsAnAnswerAndLeavesNothingBehind) {
  node_.tier().FailReserve(absl::ResourceExhaustedError("64 workers are busy"));
  Received refused = Run(Node::Request("c"));
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(node_.log().begins(), 0);
  node_.tier().FailReserve(absl::OkStatus());
  node_.tier().FailStart(absl::InternalError("exec format error"));
  Received failed = Run(Node::Request("c"));  // the same id is still free
  EXPECT_TRUE(failed.status.ok()) << failed.status;
  EXPECT_EQ(failed.result.outcome(), sandbox::OUTCOME_SETUP_FAILED);
  EXPECT_EQ(failed.result.message(), "exec format error");
  EXPECT_EQ(node_.tier().reserved(), 0);
  sandbox::ExecuteRequest nowhere = Node::Request("d");
  nowhere.set_sandbox_id("nobox");
  EXPECT_EQ(Run(nowhere).status.code(), absl::StatusCode::kNotFound);
}

TEST_F(CallsTest, LimitsAreTheCallsThenTheSandboxsThenTheTiers) {
  sandbox::CreateRequest create;
  create.set_sandbox_id("limited");
  create.mutable_spec()->set_tier(sandbox::TIER_FUNCTION);
  create.mutable_spec()->mutable_limits()->set_timeout_ms(2000);
  create.mutable_spec()->mutable_limits()->set_pids(5);
  ASSERT_TRUE(node_.sandboxes().Create(create).ok());
  sandbox::ExecuteRequest request = Node::Request("c");
  request.set_sandbox_id("limited");
  request.mutable_limits()->set_timeout_ms(150);
  auto stream = node_.calls().Execute(request);
  node_.tier().WaitStarted("c");
  const sandbox::Limits limits = node_.tier().request_of("c").limits();
  EXPECT_EQ(limits.timeout_ms(), 150u);
  EXPECT_EQ(limits.pids(), 5u);
  EXPECT_EQ(limits.open_files(), 64u);
  EXPECT_EQ(limits.output_bytes_kept(), 64u << 20);
  EXPECT_EQ(node_.tier().request_of("c").working_dir(), "/work");
  node_.tier().End("c", sandbox::OUTCOME_TIMED_OUT);
  EXPECT_EQ(Node::Read(stream).result.outcome(), sandbox::OUTCOME_TIMED_OUT);
}

TEST_F(CallsTest, NoMoreCallsThanTheLimit) {
  CallOptions options;
  options.calls_max = 2;
  Node small(options);
  small.MakeBox();
  auto a = small.calls().Execute(Node::Request("a"));
  auto b = small.calls().Execute(Node::Request("b"));
  small.tier().WaitStarted("a");
  small.tier().WaitStarted("b");
  Received refused = Node::Read(small.calls().Execute(Node::Request("c")));
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(Text(refused.status).find("2 calls"), std::string::npos) << refused.status;
  // Those that run may still be asked for.
  auto again = small.calls().Execute(Node::Request("a"));
  small.tier().End("a");
  EXPECT_TRUE(Node::Read(a).status.ok());
  EXPECT_TRUE(Node::Read(again).status.ok());
  small.tier().End("b");
}

}  // namespace
}  // namespace reprise::sandboxd
