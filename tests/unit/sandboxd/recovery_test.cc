// Goal: after the death of the daemon every unfinished call ends as its owner says or as its policy
// asks, exactly once, and nothing is guessed. Method: the managers go and come back on the same
// journal and the same scripted tier, which has in the meantime gone on, forgotten, or never begun.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "tests/unit/sandboxd/node.h"

namespace reprise::sandboxd {
namespace {

constexpr sandbox::Stream kOut = sandbox::STREAM_STDOUT, kErr = sandbox::STREAM_STDERR;

sandbox::ExecuteRequest WithPolicy(const std::string& id, sandbox::InterruptPolicy policy) {
  sandbox::ExecuteRequest request = Node::Request(id);
  request.set_on_interrupt(policy);
  return request;
}

class RecoveryTest : public testing::Test {
 protected:
  void SetUp() override { node_.MakeBox(); }
  void Start(const sandbox::ExecuteRequest& request) {
    node_.calls().Execute(request);
    node_.tier().WaitStarted(request.call_id());
  }
  Received Again(const sandbox::ExecuteRequest& request) {
    return Node::Read(node_.calls().Execute(request));
  }
  Node node_;
};

TEST_F(RecoveryTest, ACallThatLivedOnIsCompleteWhateverHappenedMeanwhile) {
  for (bool ends_while_down : {false, true}) {
    const std::string id = ends_while_down ? "ended" : "running";
    Start(Node::Request(id));
    node_.tier().Emit(id, kOut, "one ");
    node_.tier().WaitAcknowledged(id, kOut, 4);
    node_.Down();
    node_.tier().Emit(id, kOut, "two ");
    node_.tier().Emit(id, kErr, "oops");
    if (ends_while_down) node_.tier().End(id, sandbox::OUTCOME_EXITED, 4);
    node_.Restart();
    if (!ends_while_down) {
      node_.tier().Emit(id, kOut, "three");
      node_.tier().End(id, sandbox::OUTCOME_EXITED, 4);
    }
    Received got = Again(Node::Request(id));
    EXPECT_TRUE(got.status.ok()) << got.status;
    EXPECT_EQ(got.out, ends_while_down ? "one two " : "one two three");
    EXPECT_EQ(got.err, "oops");
    EXPECT_EQ(got.result.exit_code(), 4);
    EXPECT_EQ(node_.tier().starts(id), 1);
    node_.tier().WaitReleased(id);
  }
}

TEST_F(RecoveryTest, ACallThatNeverStartedIsStartedOnceElsewhere) {
  node_.tier().LoseStarts(true);
  node_.calls().Execute(Node::Request("c"));
  while (node_.log().begins() == 0) std::this_thread::yield();
  node_.Down();
  node_.tier().LoseStarts(false);
  EXPECT_EQ(node_.tier().reserved(), 1);
  node_.Restart();
  EXPECT_EQ(node_.tier().starts("c"), 1);
  EXPECT_EQ(node_.tier().reserved(), 0);  // the old one was given back
  node_.tier().Emit("c", kOut, "once");
  node_.tier().End("c");
  EXPECT_EQ(Again(Node::Request("c")).out, "once");
  EXPECT_EQ(node_.tier().starts("c"), 1);
}

TEST_F(RecoveryTest, ALostCallEndsAsItsPolicyAsks) {
  const auto report = WithPolicy("report", sandbox::INTERRUPT_POLICY_REPORT);
  const auto rerun = WithPolicy("rerun", sandbox::INTERRUPT_POLICY_RERUN);
  for (const auto& request : {report, rerun}) {
    Start(request);
    node_.tier().Emit(request.call_id(), kOut, "first run");
    node_.tier().WaitAcknowledged(request.call_id(), kOut, 9);
  }
  node_.Down();
  for (const char* id : {"report", "rerun"}) node_.tier().Forget(id);
  node_.Restart();

  Received got = Again(report);
  EXPECT_EQ(got.result.outcome(), sandbox::OUTCOME_INTERRUPTED);
  EXPECT_EQ(got.result.message(), "its supervisor is gone");
  EXPECT_EQ(got.out, "first run");
  EXPECT_EQ(node_.tier().starts("report"), 1);

  node_.tier().WaitStarted("rerun");
  EXPECT_EQ(node_.tier().starts("rerun"), 2);
  node_.tier().Emit("rerun", kOut, "second");
  node_.tier().End("rerun");
  got = Again(rerun);
  EXPECT_EQ(got.result.outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_EQ(got.out, "second");  // nothing of the first run is left
}

TEST_F(RecoveryTest, AfterARestartOfTheMachineNoOwnerIsAsked) {
  const auto report = WithPolicy("report", sandbox::INTERRUPT_POLICY_REPORT);
  const auto rerun = WithPolicy("rerun", sandbox::INTERRUPT_POLICY_RERUN);
  Start(report);
  Start(rerun);
  node_.Down();
  node_.Restart("boot-2");
  Received got = Again(report);
  EXPECT_EQ(got.result.outcome(), sandbox::OUTCOME_INTERRUPTED);
  EXPECT_NE(got.result.message().find("restarted"), std::string::npos);
  EXPECT_EQ(node_.tier().starts("rerun"), 2);
  node_.tier().End("rerun");
  EXPECT_EQ(Again(rerun).result.outcome(), sandbox::OUTCOME_EXITED);
  // The second run belongs to this boot: another crash finds it again.
  node_.Restart("boot-2");
  EXPECT_EQ(node_.tier().starts("rerun"), 2);
}

TEST_F(RecoveryTest, ALostSandboxEndsItsCallsAndRefusesNewOnes) {
  Start(Node::Request("c"));
  node_.Down();
  node_.tier().FailRecover(absl::NotFoundError("its container is gone"));
  node_.Restart();
  Received got = Again(Node::Request("c"));
  EXPECT_EQ(got.result.outcome(), sandbox::OUTCOME_SANDBOX_LOST);
  EXPECT_NE(got.result.message().find("its container is gone"), std::string::npos);
  auto box = node_.sandboxes().Get("box");
  ASSERT_TRUE(box.ok());
  EXPECT_EQ(box->state(), sandbox::SANDBOX_STATE_LOST);
  EXPECT_EQ(box->message(), "its container is gone");
  EXPECT_EQ(Again(Node::Request("new")).status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(*node_.calls().Stop("box"));
}

TEST_F(RecoveryTest, ATierThatDoesNotAnswerYetParksItsCalls) {
  Start(Node::Request("c"));
  node_.tier().Emit("c", kOut, "all ");
  node_.Down();
  node_.tier().FailRecover(absl::UnavailableError("containerd does not answer"));
  node_.Restart();
  EXPECT_EQ(Again(Node::Request("c")).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(node_.sandboxes().Get("box")->state(), sandbox::SANDBOX_STATE_RUNNING);
  node_.tier().FailRecover(absl::OkStatus());
  auto stream = node_.calls().Execute(Node::Request("c"));
  node_.tier().Emit("c", kOut, "of it");
  node_.tier().End("c");
  Received got = Node::Read(stream);
  EXPECT_TRUE(got.status.ok()) << got.status;
  EXPECT_EQ(got.out, "all of it");
  EXPECT_EQ(node_.tier().starts("c"), 1);
}

TEST_F(RecoveryTest, ACallWithSecretsWaitsForItsCallerToBringThemAgain) {
  sandbox::ExecuteRequest request = Node::Request("c");
  sandbox::EnvVar* variable = request.add_env();
  variable->set_name("KEY");
  variable->set_value("s3cr3t-value");
  variable->set_secret(true);
  node_.tier().LoseStarts(true);
  node_.calls().Execute(request);
  while (node_.log().begins() == 0) std::this_thread::yield();
  node_.Down();
  node_.tier().LoseStarts(false);
  node_.Restart();
  EXPECT_EQ(node_.tier().starts("c"), 0);
  auto stream = node_.calls().Execute(request);
  node_.tier().WaitStarted("c");
  EXPECT_EQ(node_.tier().request_of("c").env(0).value(), "s3cr3t-value");
  node_.tier().End("c");
  EXPECT_TRUE(Node::Read(stream).status.ok());
  EXPECT_EQ(node_.tier().starts("c"), 1);
}

TEST_F(RecoveryTest, AParkedCallCanBeCancelled) {
  Start(Node::Request("c"));
  node_.Down();
  node_.tier().FailRecover(absl::UnavailableError("away"));
  node_.Restart();
  sandbox::SignalRequest cancel;
  cancel.set_call_id("c");
  cancel.set_cancel(true);
  EXPECT_EQ(node_.calls().Signal(cancel), absl::OkStatus());
  EXPECT_EQ(node_.Finish("c").result.outcome(), sandbox::OUTCOME_CANCELLED);
}

TEST_F(RecoveryTest, RepeatedDeathsNeverRunACallTwice) {
  Start(Node::Request("c"));
  std::string all;
  for (int i = 0; i < 5; ++i) {
    const std::string piece = std::string(30000, static_cast<char>('a' + i));
    node_.tier().Emit("c", kOut, piece);
    all += piece;
    node_.Restart();
  }
  node_.tier().End("c");
  EXPECT_TRUE(Again(Node::Request("c")).out == all);
  node_.Restart();
  EXPECT_TRUE(Again(Node::Request("c")).out == all);
  EXPECT_EQ(node_.tier().starts("c"), 1);
}

}  // namespace
}  // namespace reprise::sandboxd
