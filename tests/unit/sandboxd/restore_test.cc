// Goal: a call that may be rolled back leaves its effects exactly once, whatever dies when; a lost
// sandbox comes back as its log says, or not at all. Method: the managers go and come back on the
// same journal; the scripted tier's sandboxes hold which calls were started in them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tests/unit/sandboxd/node.h"

namespace reprise::sandboxd {
namespace {

using ::testing::HasSubstr;

constexpr sandbox::Stream kOut = sandbox::STREAM_STDOUT;

class RestoreTest : public testing::Test {
 protected:
  void SetUp() override { node_.MakeBox(); }

  static sandbox::ExecuteRequest RolledBack(const std::string& id) {
    sandbox::ExecuteRequest request = Node::Request(id);
    request.set_on_interrupt(sandbox::INTERRUPT_POLICY_RESTORE);
    return request;
  }
  void Start(const sandbox::ExecuteRequest& request) {
    node_.calls().Execute(request);
    node_.tier().WaitStarted(request.call_id());
  }
  // Runs a call that prints `out` to its end.
  void Ran(const std::string& id, const std::string& out) {
    auto stream = node_.calls().Execute(Node::Request(id));
    node_.tier().WaitStarted(id);
    node_.tier().Emit(id, kOut, out);
    node_.tier().End(id);
    EXPECT_EQ(Node::Read(stream).out, out);
    node_.tier().WaitReleased(id);
  }
  void LoseTheSandbox() {
    node_.Down();
    node_.tier().FailRecover(absl::NotFoundError("its container is gone"));
    node_.Restart("boot-2");
    node_.tier().FailRecover(absl::OkStatus());
    ASSERT_EQ(node_.sandboxes().Get("box")->state(), sandbox::SANDBOX_STATE_LOST);
  }
  // Plays the calls that a Restore runs again: each prints the text that it is given.
  absl::StatusOr<sandbox::RestoreResponse> Restore(
      const std::vector<std::pair<std::string, std::string>>& plays) {
    for (const auto& [id, out] : plays) node_.tier().Forget(id);
    absl::StatusOr<sandbox::RestoreResponse> restored;
    std::thread caller([&] { restored = node_.calls().Restore("box"); });
    for (const auto& [id, out] : plays) {
      node_.tier().WaitStarted(id);
      node_.tier().Emit(id, kOut, out);
      node_.tier().End(id);
    }
    caller.join();
    return restored;
  }

  Node node_;
};

TEST_F(RestoreTest, TheSandboxIsRolledBackBeforeTheCallRunsAgain) {
  Ran("first", "x");
  Start(RolledBack("c"));
  node_.tier().Emit("c", kOut, "half");
  node_.tier().WaitAcknowledged("c", kOut, 4);
  EXPECT_EQ(node_.tier().files_of("box"), "first;c;");
  node_.Down();
  node_.tier().Forget("c");
  node_.Restart();
  EXPECT_EQ(node_.tier().starts("c"), 2);
  EXPECT_EQ(node_.tier().files_of("box"), "first;c;") << "once, not twice";
  node_.tier().Emit("c", kOut, "whole");
  node_.tier().End("c");
  const Received got = Node::Read(node_.calls().Execute(RolledBack("c")));
  EXPECT_EQ(got.result.outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_EQ(got.out, "whole");
}

TEST_F(RestoreTest, ALostSandboxComesBackForItsCall) {
  Start(RolledBack("c"));
  node_.Down();
  node_.tier().Forget("c");
  node_.tier().FailRecover(absl::NotFoundError("its container is gone"));
  node_.Restart("boot-2");
  node_.tier().FailRecover(absl::OkStatus());
  EXPECT_EQ(node_.tier().creates(), 2);
  EXPECT_EQ(node_.tier().files_of("box"), "c;");
  node_.tier().End("c");
  EXPECT_EQ(Node::Read(node_.calls().Execute(RolledBack("c"))).result.outcome(),
            sandbox::OUTCOME_EXITED);
  EXPECT_EQ(node_.sandboxes().Get("box")->state(), sandbox::SANDBOX_STATE_RUNNING);
}

TEST_F(RestoreTest, ADeathBetweenRollBackAndStartRollsBackAgain) {
  Start(RolledBack("c"));
  node_.Down();
  node_.tier().Forget("c");
  // The new incarnation is recorded, the call's new place is not: as a kill between the two.
  node_.tier().FailReserve(absl::DataLossError("killed here"));
  node_.Restart();
  EXPECT_EQ(node_.tier().starts("c"), 1);
  node_.tier().FailReserve(absl::OkStatus());
  node_.tier().SetFiles("box", "whatever the dead one did;");
  node_.Restart();
  EXPECT_EQ(node_.tier().starts("c"), 2);
  EXPECT_EQ(node_.tier().files_of("box"), "c;");
  node_.tier().End("c");
  EXPECT_EQ(Node::Read(node_.calls().Execute(RolledBack("c"))).result.outcome(),
            sandbox::OUTCOME_EXITED);
}

TEST_F(RestoreTest, SuchACallHasItsSandboxToItself) {
  Start(RolledBack("c"));
  EXPECT_TRUE(absl::IsUnavailable(Node::Read(node_.calls().Execute(Node::Request("d"))).status));
  node_.tier().End("c");
  EXPECT_TRUE(Node::Read(node_.calls().Execute(RolledBack("c"))).status.ok());
  Start(Node::Request("d"));
  const Received refused = Node::Read(node_.calls().Execute(RolledBack("e")));
  EXPECT_TRUE(absl::IsUnavailable(refused.status)) << refused.status;
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("to itself"));
  node_.tier().End("d");
  EXPECT_TRUE(Node::Read(node_.calls().Execute(Node::Request("d"))).status.ok());
  Start(RolledBack("e"));
  node_.tier().End("e");
}

TEST_F(RestoreTest, WhatTheLogDoesNotHoldIsNotGuessed) {
  sandbox::ExecuteRequest request = RolledBack("c");
  request.set_stdin_open(true);
  Start(request);
  sandbox::WriteStdinRequest input;
  input.set_call_id("c");
  input.set_data("typed");
  ASSERT_TRUE(node_.calls().WriteStdin(input).ok());
  node_.Down();
  node_.tier().Forget("c");
  node_.Restart();
  const Received got = Node::Read(node_.calls().Execute(request));
  EXPECT_EQ(got.result.outcome(), sandbox::OUTCOME_INTERRUPTED);
  EXPECT_THAT(got.result.message(), HasSubstr("the log does not hold"));
  EXPECT_EQ(node_.tier().starts("c"), 1);
  // A snapshot holds it.
  Start(RolledBack("d"));
  node_.Down();
  node_.tier().Forget("d");
  node_.Restart();
  EXPECT_EQ(node_.tier().starts("d"), 2);
  node_.tier().End("d");
}

TEST_F(RestoreTest, NoSnapshotNoCall) {
  node_.tier().FailSnapshot(absl::ResourceExhaustedError("full"));
  EXPECT_TRUE(absl::IsResourceExhausted(Node::Read(node_.calls().Execute(RolledBack("c"))).status));
  EXPECT_EQ(node_.tier().starts("c"), 0);
  node_.tier().FailSnapshot(absl::OkStatus());
  Start(RolledBack("c"));
  node_.tier().End("c");
}

TEST_F(RestoreTest, ALostSandboxIsRebuiltFromItsLog) {
  Ran("a", "one\n");
  Ran("b", "two\n");
  LoseTheSandbox();
  const auto restored = Restore({{"a", "one\n"}, {"b", "two\n"}});
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_TRUE(restored->was_lost());
  EXPECT_EQ(restored->run_again(), 2u);
  EXPECT_EQ(node_.tier().files_of("box"), "a;b;");
  EXPECT_EQ(restored->sandbox().state(), sandbox::SANDBOX_STATE_RUNNING);
  EXPECT_FALSE(node_.calls().Restore("box")->was_lost());
  Ran("c", "three");
  // The next time it begins with the snapshot that was taken then.
  LoseTheSandbox();
  const auto again = Restore({{"c", "three"}});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->run_again(), 1u);
  EXPECT_EQ(node_.tier().files_of("box"), "a;b;c;");
  EXPECT_EQ(Node::Read(node_.calls().Execute(Node::Request("a"))).out, "one\n") << "from the log";
  EXPECT_EQ(node_.tier().starts("a"), 2);
}

TEST_F(RestoreTest, TheFirstDifferenceEndsARebuild) {
  Ran("a", "one\n");
  Ran("b", "two\n");
  LoseTheSandbox();
  const int stops = node_.tier().stops();
  const auto restored = Restore({{"a", "oNe\n"}});
  EXPECT_TRUE(absl::IsFailedPrecondition(restored.status()));
  EXPECT_THAT(std::string(restored.status().message()),
              HasSubstr("DIVERGED: call a: stdout differs at byte 1: was \"ne\\n\", is \"Ne\\n\""));
  EXPECT_EQ(node_.tier().stops(), stops + 1) << "what was made is gone";
  EXPECT_EQ(node_.sandboxes().Get("box")->state(), sandbox::SANDBOX_STATE_LOST);
  EXPECT_EQ(node_.tier().starts("b"), 1);
  const auto shorter = Restore({{"a", "one"}});
  EXPECT_THAT(std::string(shorter.status().message()), HasSubstr("stdout differs in length"));
  ASSERT_TRUE(Restore({{"a", "one\n"}, {"b", "two\n"}}).ok());
}

// Plays the calls that a fork runs again.
class ForkAtTest : public RestoreTest {
 protected:
  absl::StatusOr<sandbox::CreateResponse> Fork(
      const std::string& from, const std::string& id, const std::string& at_call,
      const std::vector<std::pair<std::string, std::string>>& plays) {
    for (const auto& [call, out] : plays) node_.tier().Forget(call);
    sandbox::ForkRequest request;
    request.set_sandbox_id(from);
    request.set_new_id(id);
    request.set_at_call(at_call);
    absl::StatusOr<sandbox::CreateResponse> forked;
    std::thread caller([&] { forked = node_.calls().Fork(request); });
    for (const auto& [call, out] : plays) {
      node_.tier().WaitStarted(call);
      node_.tier().Emit(call, kOut, out);
      node_.tier().End(call);
    }
    caller.join();
    return forked;
  }
};

TEST_F(ForkAtTest, ASandboxIsMadeAsItWasAfterACallAlsoOnceItIsStopped) {
  Ran("a", "one\n");
  Ran("b", "two\n");
  Ran("c", "three\n");
  const auto live = Fork("box", "live", "b", {{"a", "one\n"}, {"b", "two\n"}});
  ASSERT_TRUE(live.ok()) << live.status();
  EXPECT_EQ(node_.tier().files_of("live"), "a;b;");
  EXPECT_EQ(node_.tier().files_of("box"), "a;b;c;") << "it goes on as it was";
  // Where it is now, its files are copied and no call runs again.
  ASSERT_TRUE(Fork("box", "now", "c", {}).ok());
  EXPECT_EQ(node_.tier().files_of("now"), "a;b;c;");
  EXPECT_EQ(node_.tier().starts("c"), 1);
  ASSERT_TRUE(node_.calls().Stop("box").ok());
  const auto stopped = Fork("box", "stopped", "a", {{"a", "one\n"}});
  ASSERT_TRUE(stopped.ok()) << stopped.status();
  EXPECT_EQ(node_.tier().files_of("stopped"), "a;");
  // The same request again is the same sandbox, another is not.
  EXPECT_TRUE(Fork("box", "stopped", "a", {})->existed());
  EXPECT_TRUE(absl::IsFailedPrecondition(Fork("box", "stopped", "b", {}).status()));
  EXPECT_TRUE(absl::IsNotFound(Fork("box", "none", "unknown", {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Fork("live", "none", "a", {}).status()));
}

TEST_F(ForkAtTest, AForkIsForkedAndRestoredWithTheCallsThatItBeganWith) {
  Ran("a", "one\n");
  Ran("b", "two\n");
  ASSERT_TRUE(node_.calls().Stop("box").ok());
  ASSERT_TRUE(Fork("box", "fork", "a", {{"a", "one\n"}}).ok());
  sandbox::ExecuteRequest own = Node::Request("own");
  own.set_sandbox_id("fork");
  auto stream = node_.calls().Execute(own);
  node_.tier().WaitStarted("own");
  node_.tier().Emit("own", kOut, "mine\n");
  node_.tier().End("own");
  EXPECT_EQ(Node::Read(stream).out, "mine\n");
  node_.tier().WaitReleased("own");
  ASSERT_TRUE(node_.calls().Stop("fork").ok());
  const auto second = Fork("fork", "second", "own", {{"a", "one\n"}, {"own", "mine\n"}});
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(node_.tier().files_of("second"), "a;own;");
}

TEST_F(ForkAtTest, ADifferenceOrWhatTheLogDoesNotHoldIsNoFork) {
  Ran("a", "one\n");
  Ran("b", "two\n");
  const int creates = node_.tier().creates(), stops = node_.tier().stops();
  const auto differs = Fork("box", "fork", "a", {{"a", "oNe\n"}});
  EXPECT_THAT(std::string(differs.status().message()), HasSubstr("DIVERGED: call a: stdout"));
  EXPECT_EQ(node_.tier().creates() - creates, node_.tier().stops() - stops);
  EXPECT_TRUE(absl::IsNotFound(node_.sandboxes().Get("fork").status()));
  { auto change = node_.sandboxes().BeginChange("box"); }
  EXPECT_THAT(std::string(Fork("box", "fork", "a", {}).status().message()),
              HasSubstr("the log does not hold"));
}

}  // namespace
}  // namespace reprise::sandboxd
