// Snapshots and forks as the managers keep them: one per id, nothing half-made, names that are
// theirs alone.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/sandboxd/node.h"

namespace reprise::sandboxd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

sandbox::SnapshotRequest Ask(const std::string& id, const std::string& name = "") {
  sandbox::SnapshotRequest request;
  request.set_sandbox_id("box");
  request.set_snapshot_id(id);
  request.set_name(name);
  return request;
}

sandbox::ForkRequest AskFork(const std::string& id) {
  sandbox::ForkRequest request;
  request.set_sandbox_id("box");
  request.set_new_id(id);
  return request;
}

TEST(Snapshots, AreTakenOncePerId) {
  Node node;
  node.MakeBox();
  node.tier().SetFiles("box", "one");
  const auto first = node.calls().Snapshot(Ask("s"));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_FALSE(first->existed());
  EXPECT_TRUE(first->quiet());
  EXPECT_EQ(first->image().name(), "snapshots/box:0");
  node.tier().SetFiles("box", "two");
  for (const char* const boot : {"boot-1", "boot-1"}) {
    const auto again = node.calls().Snapshot(Ask("s"));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_TRUE(again->existed());
    EXPECT_EQ(again->image().digest(), first->image().digest());
    node.Restart(boot);
  }
  EXPECT_EQ(node.tier().snapshots(), 1);
  EXPECT_THAT(std::string(node.calls().Snapshot(Ask("s", "other")).status().message()),
              HasSubstr("divergence: name differs"));
  ASSERT_TRUE(node.calls().Snapshot(Ask("t", "named")).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(node.calls().Snapshot(Ask("u", "named")).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(node.calls().Snapshot(Ask("u", "snapshots/x")).status()));
  EXPECT_EQ(node.sandboxes().ListSnapshots("box")->snapshots_size(), 2);
}

TEST(Snapshots, KnowWhetherACallRan) {
  Node node;
  node.MakeBox();
  auto stream = node.calls().Execute(Node::Request("call"));
  node.tier().WaitStarted("call");
  const auto during = node.calls().Snapshot(Ask("during"));
  ASSERT_TRUE(during.ok()) << during.status();
  EXPECT_FALSE(during->quiet());
  EXPECT_EQ(during->calls(), 1u);
  node.tier().End("call");
  EXPECT_EQ(Node::Read(stream).result.outcome(), sandbox::OUTCOME_EXITED);
  const auto after = node.calls().Snapshot(Ask("after"));
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_TRUE(after->quiet());
}

TEST(Snapshots, WhatIsNotFinishedIsTakenAway) {
  Node node;
  node.MakeBox();
  node.tier().FailSnapshot(absl::InternalError("no"));
  EXPECT_TRUE(absl::IsInternal(node.calls().Snapshot(Ask("s")).status()));
  node.tier().FailSnapshot(absl::OkStatus());
  EXPECT_THAT(*node.log().ListSnapshots("box"), IsEmpty());
  // The image is made and the journal does not hear of it.
  node.log().FailWritesAfter(1, absl::DataLossError("disk"));
  EXPECT_TRUE(absl::IsDataLoss(node.calls().Snapshot(Ask("s")).status()));
  EXPECT_THAT(node.tier().images(), ElementsAre("snapshots/box:0"));
  const int thaws = node.tier().thaws();
  node.Restart();
  EXPECT_GT(node.tier().thaws(), thaws) << "the sandbox may have stood still";
  EXPECT_THAT(node.tier().images(), IsEmpty());
  EXPECT_THAT(*node.log().ListSnapshots(""), IsEmpty());
  ASSERT_TRUE(node.calls().Snapshot(Ask("s")).ok());
  EXPECT_THAT(node.tier().images(), ElementsAre("snapshots/box:0"));
}

TEST(Forks, AreMadeOncePerIdFromOneSnapshot) {
  Node node;
  node.MakeBox();
  node.tier().SetFiles("box", "mine");
  sandbox::ForkRequest request = AskFork("twin");
  sandbox::EnvVar* variable = request.add_env();
  variable->set_name("A");
  variable->set_value("1");
  request.mutable_limits()->set_pids(7);
  const auto made = node.calls().Fork(request);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_FALSE(made->existed());
  EXPECT_EQ(node.tier().files_of("twin"), "mine");
  EXPECT_EQ(made->sandbox().spec().env(0).value(), "1");
  EXPECT_EQ(made->sandbox().spec().limits().pids(), 7u);
  EXPECT_EQ(made->sandbox().spec().tier(), sandbox::TIER_FUNCTION);
  node.tier().SetFiles("box", "changed");
  const auto again = node.calls().Fork(request);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->existed());
  EXPECT_EQ(node.tier().snapshots(), 1);
  EXPECT_EQ(node.tier().creates(), 2);
  EXPECT_TRUE(absl::IsFailedPrecondition(node.calls().Fork(AskFork("box")).status()));
  // A kill between the snapshot and the sandbox: the retry goes on with that snapshot.
  node.tier().FailCreate(absl::UnavailableError("no"));
  EXPECT_FALSE(node.calls().Fork(AskFork("late")).ok());
  node.tier().FailCreate(absl::OkStatus());
  node.tier().SetFiles("box", "changed again");
  ASSERT_TRUE(node.calls().Fork(AskFork("late")).ok());
  EXPECT_EQ(node.tier().files_of("late"), "changed");
}

TEST(Images, StayAsLongAsASandboxNeedsThem) {
  Node node;
  node.MakeBox();
  auto remove = [&](const std::string& name) {
    return node.sandboxes().RemoveImage(name, [&] { return node.tier().RemoveImage(name); });
  };
  ASSERT_TRUE(node.calls().Snapshot(Ask("s", "named")).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(remove("named")));
  ASSERT_TRUE(node.calls().Fork(AskFork("twin")).ok());
  const std::string image = node.sandboxes().Get("twin")->spec().image();
  ASSERT_TRUE(node.calls().Stop("box").ok());
  EXPECT_THAT(std::string(remove(image).message()), HasSubstr("twin was made from it"));
  EXPECT_THAT(node.tier().images(), ElementsAre("named", image));
  ASSERT_TRUE(node.calls().Stop("twin").ok());
  EXPECT_THAT(node.tier().images(), ElementsAre("named")) << "nobody asked for the fork's snapshot";
  ASSERT_TRUE(remove("named").ok());
  EXPECT_THAT(*node.log().ListSnapshots(""), IsEmpty());
  EXPECT_TRUE(absl::IsNotFound(remove("named")));
}

TEST(Images, ARemovalThatWasCutOffIsFinished) {
  for (int writes : {0, 1}) {
    Node node;
    node.MakeBox();
    ASSERT_TRUE(node.calls().Snapshot(Ask("s", "named")).ok());
    ASSERT_TRUE(node.calls().Stop("box").ok());
    node.log().FailWritesAfter(writes, absl::DataLossError("disk"));
    EXPECT_FALSE(node.sandboxes()
                     .RemoveImage("named", [&] { return node.tier().RemoveImage("named"); })
                     .ok());
    node.Restart();
    const bool begun = writes > 0;
    EXPECT_EQ(node.log().ListSnapshots("")->size(), begun ? 0u : 1u);
    EXPECT_EQ(node.tier().images().size(), begun ? 0u : 1u);
  }
}

TEST(Images, OldSnapshotsOfCallsGo) {
  Node node;
  node.MakeBox();
  ASSERT_TRUE(node.calls().Snapshot(Ask("asked")).ok());
  for (int i = 0; i < 5; ++i) {
    sandbox::ExecuteRequest request = Node::Request(fmt::format("c{}", i));
    request.set_on_interrupt(sandbox::INTERRUPT_POLICY_RESTORE);
    auto stream = node.calls().Execute(request);
    node.tier().WaitStarted(request.call_id());
    EXPECT_LE(node.tier().images().size(), 3u);
    node.tier().End(request.call_id());
    EXPECT_EQ(Node::Read(stream).result.outcome(), sandbox::OUTCOME_EXITED);
  }
  EXPECT_THAT(node.tier().images(),
              ElementsAre("snapshots/box:0", "snapshots/box:4", "snapshots/box:5"));
}

}  // namespace
}  // namespace reprise::sandboxd
