// Goal: cancelling, signals, input and stopping act on the call they name, once, at whatever moment
// they come; a journal that fails answers every caller and loses nothing. Method: as calls_test,
// with writes of the journal held or refused.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "tests/unit/sandboxd/node.h"

namespace reprise::sandboxd {
namespace {

constexpr sandbox::Stream kOut = sandbox::STREAM_STDOUT;

sandbox::SignalRequest SignalOf(const std::string& call_id, int signal) {
  sandbox::SignalRequest request;
  request.set_call_id(call_id);
  request.set_signal(signal);
  return request;
}
sandbox::SignalRequest CancelOf(const std::string& call_id) {
  sandbox::SignalRequest request;
  request.set_call_id(call_id);
  request.set_cancel(true);
  return request;
}

class VerbsTest : public testing::Test {
 protected:
  void SetUp() override { node_.MakeBox(); }
  std::shared_ptr<CallStream> Start(const std::string& id) {
    auto stream = node_.calls().Execute(Node::Request(id));
    node_.tier().WaitStarted(id);
    return stream;
  }
  Node node_;
};

TEST_F(VerbsTest, CancelEndsARunningCall) {
  auto stream = Start("c");
  EXPECT_EQ(node_.calls().Signal(CancelOf("c")), absl::OkStatus());
  EXPECT_EQ(Node::Read(stream).result.outcome(), sandbox::OUTCOME_CANCELLED);
  EXPECT_EQ(node_.calls().Signal(CancelOf("c")), absl::OkStatus());  // it has ended
  EXPECT_EQ(node_.calls().Signal(CancelOf("none")).code(), absl::StatusCode::kNotFound);
}

TEST_F(VerbsTest, ACallCancelledBeforeItsStartNeverRuns) {
  node_.log().HoldBegin(true);
  auto stream = node_.calls().Execute(Node::Request("c"));
  // The call is in the table once its reservation is made, which is before Begin.
  while (node_.tier().reserved() == 0) std::this_thread::yield();
  EXPECT_EQ(node_.calls().Signal(CancelOf("c")), absl::OkStatus());
  node_.log().HoldBegin(false);
  Received got = Node::Read(stream);
  EXPECT_TRUE(got.status.ok()) << got.status;
  EXPECT_EQ(got.result.outcome(), sandbox::OUTCOME_CANCELLED);
  EXPECT_EQ(node_.tier().starts("c"), 0);
  EXPECT_EQ(node_.tier().reserved(), 0);
}

TEST_F(VerbsTest, InputAndSignalsReachTheCallUntilItEnds) {
  auto stream = Start("c");
  sandbox::WriteStdinRequest input;
  input.set_call_id("c");
  input.set_data("line\n");
  EXPECT_EQ(node_.calls().WriteStdin(input), absl::OkStatus());
  input.set_eof(true);
  EXPECT_EQ(node_.calls().WriteStdin(input), absl::OkStatus());
  EXPECT_EQ(node_.tier().stdin_of("c"), "line\nline\n<eof>");
  EXPECT_EQ(node_.calls().Signal(SignalOf("c", 15)), absl::OkStatus());
  EXPECT_EQ(node_.tier().signals_of("c"), std::vector<int>{15});
  EXPECT_EQ(node_.calls().Signal(SignalOf("c", 0)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(node_.calls().Signal(SignalOf("c", 65)).code(), absl::StatusCode::kInvalidArgument);
  input.set_data(std::string((4u << 20) + 1, 'x'));
  EXPECT_EQ(node_.calls().WriteStdin(input).code(), absl::StatusCode::kInvalidArgument);
  node_.tier().End("c");
  EXPECT_TRUE(Node::Read(stream).status.ok());
  node_.tier().WaitReleased("c");
  input.set_data("late");
  EXPECT_EQ(node_.calls().WriteStdin(input).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(node_.calls().Signal(SignalOf("c", 15)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(node_.calls().Signal(SignalOf("none", 15)).code(), absl::StatusCode::kNotFound);
}

TEST_F(VerbsTest, StopEndsTheSandboxsCallsAndOnlyThose) {
  sandbox::CreateRequest other;
  other.set_sandbox_id("other");
  other.mutable_spec()->set_tier(sandbox::TIER_FUNCTION);
  ASSERT_TRUE(node_.sandboxes().Create(other).ok());
  auto a = Start("a");
  auto b = Start("b");
  sandbox::ExecuteRequest elsewhere = Node::Request("e");
  elsewhere.set_sandbox_id("other");
  auto e = node_.calls().Execute(elsewhere);
  node_.tier().WaitStarted("e");
  absl::StatusOr<bool> stopped = node_.calls().Stop("box");
  ASSERT_TRUE(stopped.ok()) << stopped.status();
  EXPECT_TRUE(*stopped);
  EXPECT_EQ(Node::Read(a).result.outcome(), sandbox::OUTCOME_CANCELLED);
  EXPECT_EQ(Node::Read(b).result.outcome(), sandbox::OUTCOME_CANCELLED);
  node_.tier().End("e");
  EXPECT_EQ(Node::Read(e).result.outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_EQ(node_.tier().stops(), 1);
  EXPECT_FALSE(*node_.calls().Stop("box"));
  EXPECT_EQ(node_.calls().Stop("none").status().code(), absl::StatusCode::kNotFound);
  // Its log stays: what ran is still answered, nothing new runs.
  EXPECT_TRUE(Node::Read(node_.calls().Execute(Node::Request("a"))).result.replayed());
  EXPECT_EQ(Node::Read(node_.calls().Execute(Node::Request("new"))).status.code(),
            absl::StatusCode::kFailedPrecondition);
  auto list = node_.calls().ListCalls("box");
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(list->calls_size(), 2);
  EXPECT_EQ(list->calls(0).call_id(), "a");
  EXPECT_EQ(list->calls(1).state(), sandbox::CALL_STATE_COMPLETED);
}

TEST_F(VerbsTest, DetachAnswersReadersAndTakesNothingNew) {
  auto stream = Start("c");
  node_.calls().Detach();
  EXPECT_EQ(Node::Read(stream).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Node::Read(node_.calls().Execute(Node::Request("d"))).status.code(),
            absl::StatusCode::kUnavailable);
  node_.tier().End("c");  // lives on
  node_.Restart();
  EXPECT_EQ(node_.Finish("c").result.outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_EQ(node_.tier().starts("c"), 1);
}

// ---- a journal that fails

const absl::Status kFull = absl::ResourceExhaustedError("/journal: no space left on device");

TEST_F(VerbsTest, AnIntentThatCannotBeWrittenStartsNothing) {
  node_.log().FailWrites(kFull);
  std::vector<std::shared_ptr<CallStream>> streams;
  for (int i = 0; i < 8; ++i) streams.push_back(node_.calls().Execute(Node::Request("c")));
  for (const auto& stream : streams) EXPECT_EQ(Node::Read(stream).status, kFull);
  EXPECT_EQ(node_.tier().starts("c"), 0);
  EXPECT_EQ(node_.tier().reserved(), 0);
  node_.Restart();
  auto stream = Start("c");
  node_.tier().End("c");
  EXPECT_EQ(Node::Read(stream).result.outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_EQ(node_.tier().starts("c"), 1);
}

// Writes after the INTENT: the n-th fails, be it of output or of the result.
TEST_F(VerbsTest, AnyLaterFailureAnswersEveryReaderAndLosesNothing) {
  for (int n = 0; n <= 3; ++n) {
    const std::string id = "c" + std::to_string(n);
    auto first = Start(id);
    std::vector<std::shared_ptr<CallStream>> streams = {first};
    for (int i = 0; i < 7; ++i) streams.push_back(node_.calls().Attach(id));
    node_.log().FailWritesAfter(n, kFull);
    std::string all;
    for (int i = 0; i < 3; ++i) {
      std::string piece = "piece " + std::to_string(i) + "\n";
      node_.tier().Emit(id, kOut, piece);
      all += piece;
      if (i < n) node_.tier().WaitAcknowledged(id, kOut, all.size());
    }
    node_.tier().End(id, sandbox::OUTCOME_EXITED, 9);
    for (const auto& stream : streams) EXPECT_EQ(Node::Read(stream).status, kFull) << "n=" << n;
    EXPECT_FALSE(node_.tier().released(id));
    EXPECT_EQ(Node::Read(node_.calls().Execute(Node::Request(id))).status, kFull);
    EXPECT_EQ(Node::Read(node_.calls().Execute(Node::Request("new"))).status, kFull);

    node_.Restart();  // on a disk with room
    Received got = Node::Read(node_.calls().Execute(Node::Request(id)));
    EXPECT_TRUE(got.status.ok()) << got.status;
    EXPECT_EQ(got.out, all) << "n=" << n;
    EXPECT_EQ(got.result.exit_code(), 9);
    EXPECT_EQ(node_.tier().starts(id), 1);
  }
}

TEST_F(VerbsTest, FinishedCallsAreAnsweredWhileTheJournalRefusesWrites) {
  auto stream = Start("done");
  node_.tier().Emit("done", kOut, "output");
  node_.tier().End("done");
  EXPECT_TRUE(Node::Read(stream).status.ok());
  node_.log().FailWrites(kFull);
  Received replay = Node::Read(node_.calls().Execute(Node::Request("done")));
  EXPECT_TRUE(replay.status.ok()) << replay.status;
  EXPECT_EQ(replay.out, "output");
  sandbox::CreateRequest create;
  create.mutable_spec()->set_tier(sandbox::TIER_FUNCTION);
  EXPECT_EQ(node_.sandboxes().Create(create).status(), kFull);
}

TEST_F(VerbsTest, AStoppedSandboxIsForgottenWithItsCallsAndNoOther) {
  EXPECT_TRUE(absl::IsNotFound(node_.calls().ForgetSandbox("nobody")));
  auto stream = Start("c");
  EXPECT_TRUE(absl::IsFailedPrecondition(node_.calls().ForgetSandbox("box"))) << "a call runs";
  node_.tier().Emit("c", kOut, "output");
  node_.tier().End("c");
  EXPECT_TRUE(Node::Read(stream).status.ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(node_.calls().ForgetSandbox("box"))) << "it is there";
  node_.MakeBox("other");
  ASSERT_TRUE(node_.calls().Stop("box").ok());
  node_.log().FailWritesAfter(0, kFull);
  EXPECT_EQ(node_.calls().ForgetSandbox("box"), kFull);
  node_.Restart();
  EXPECT_EQ(Node::Read(node_.calls().Attach("c")).out, "output") << "nothing went";
  ASSERT_TRUE(node_.calls().ForgetSandbox("box").ok());
  EXPECT_TRUE(absl::IsNotFound(node_.sandboxes().Get("box").status()));
  EXPECT_TRUE(absl::IsNotFound(Node::Read(node_.calls().Attach("c")).status));
  EXPECT_TRUE(absl::IsNotFound(node_.calls().ForgetSandbox("box")));
  EXPECT_TRUE(node_.sandboxes().Get("other").ok());
  node_.Restart();
  EXPECT_TRUE(absl::IsNotFound(node_.sandboxes().Get("box").status()));
  node_.MakeBox("box");
}

TEST_F(VerbsTest, ASandboxThatCannotBeWrittenDownIsRemovedAgain) {
  node_.log().FailWritesAfter(0, kFull);
  sandbox::CreateRequest create;
  create.set_sandbox_id("unwritten");
  create.mutable_spec()->set_tier(sandbox::TIER_FUNCTION);
  EXPECT_EQ(node_.sandboxes().Create(create).status(), kFull);
  EXPECT_EQ(node_.sandboxes().Get("unwritten").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(node_.tier().creates() - 1, node_.tier().stops());
}

}  // namespace
}  // namespace reprise::sandboxd
