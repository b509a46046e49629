// Goal: a daemon that is killed anywhere in a snapshot, a removal, a rebuild or a fork leaves the
// thing done or not begun, and the next daemon takes away what is neither. Method: a child of this
// program dies at each fail point; journal and images lie in a directory that the parent opens.
#include <gtest/gtest.h>

#include <thread>

#include "base/failpoint.h"
#include "tests/killed_child.h"
#include "tests/unit/sandboxd/node.h"

namespace reprise::sandboxd {
namespace {

constexpr char kImage[] = "kept:1";

// Lets a call print `out` and end, once it has started.
void Play(Node& node, const std::string& call, const std::string& out) {
  node.tier().WaitStarted(call);
  node.tier().Emit(call, sandbox::STREAM_STDOUT, out);
  node.tier().End(call);
}

void RunCall(Node& node, const std::string& call) {
  auto stream = node.calls().Execute(Node::Request(call));
  Play(node, call, call);
  ASSERT_EQ(Node::Read(stream).out, call);
  node.tier().WaitReleased(call);
}

absl::StatusOr<sandbox::SnapshotInfo> Snapshot(Node& node) {
  sandbox::SnapshotRequest request;
  request.set_sandbox_id("box");
  request.set_snapshot_id("asked");
  request.set_name(kImage);
  return node.calls().Snapshot(request);
}

// Of a sandbox that is stopped: as long as it lives it may be made again from its snapshots.
absl::Status Remove(Node& node) {
  EXPECT_TRUE(node.calls().Stop("box").ok());
  return node.sandboxes().RemoveImage(kImage, [&] { return node.tier().RemoveImage(kImage); });
}

void Lose(Node& node) {
  node.Down();
  node.tier().FailRecover(absl::NotFoundError("its container is gone"));
  node.Restart("boot-2");
  node.tier().FailRecover(absl::OkStatus());
}

// Restore, or a fork from a place in the log, with the calls "a" and "b" run again.
absl::Status Rebuild(Node& node, bool fork) {
  for (const char* call : {"a", "b"}) node.tier().Forget(call);
  absl::Status rebuilt;
  std::thread caller([&] {
    if (!fork) {
      rebuilt = node.calls().Restore("box").status();
      return;
    }
    sandbox::ForkRequest request;
    request.set_sandbox_id("box");
    request.set_new_id("fork");
    request.set_at_call("b");
    rebuilt = node.calls().Fork(request).status();
  });
  Play(node, "a", "a");
  Play(node, "b", "b");
  caller.join();
  return rebuilt;
}

TEST(Killed, DISABLED_SnapshotChild) {
  if (ChildDir().empty()) GTEST_SKIP() << "runs as a child of the other tests";
  Node node(ChildDir());
  node.MakeBox();
  RunCall(node, "a");
  ASSERT_TRUE(Report() && base::ArmFailPoint(ChildPoint()).ok());
  ASSERT_TRUE(Snapshot(node).ok() && Report());
  ASSERT_TRUE(Remove(node).ok());
}

TEST(Killed, DISABLED_RebuildChild) {
  if (ChildDir().empty()) GTEST_SKIP() << "runs as a child of the other tests";
  const bool fork = ChildPoint().starts_with("fork ");
  Node node(ChildDir());
  node.MakeBox();
  RunCall(node, "a");
  RunCall(node, "b");
  if (!fork) Lose(node);
  if (fork) {
    ASSERT_TRUE(node.calls().Stop("box").ok());
  }
  ASSERT_TRUE(Report() && base::ArmFailPoint(ChildPoint().substr(fork ? 5 : 0)).ok());
  ASSERT_TRUE(Rebuild(node, fork).ok());
}

void ExpectKilled(const std::string& test, const std::string& dir, const std::string& point,
                  uint64_t reports) {
  const ChildEnd end = RunChild("Killed.DISABLED_" + test, dir, point);
  EXPECT_TRUE(WIFSIGNALED(end.status) && WTERMSIG(end.status) == SIGKILL) << end.status;
  EXPECT_EQ(end.reports, reports);
}

TEST(Killed, ASnapshotIsThereOrNotAndItsImageWithIt) {
  struct Step {
    const char* point;
    uint64_t reports;  // 2: the snapshot was acknowledged
    bool there;        // after the next start
  };
  for (const Step& step : {Step{"snapshot.pending:1", 1, false}, Step{"snapshot.made:1", 1, false},
                           Step{"snapshot.done:1", 1, true}, Step{"snapshot.marked:1", 2, false},
                           Step{"snapshot.removed:1", 2, false}}) {
    SCOPED_TRACE(step.point);
    base::ScratchDir dir;
    ExpectKilled("SnapshotChild", dir.path(), step.point, step.reports);
    Node node(dir.path());
    EXPECT_EQ(node.sandboxes().ListSnapshots("box")->snapshots_size(), step.there ? 1 : 0);
    EXPECT_EQ(node.tier().images(),
              step.there ? std::vector<std::string>{kImage} : std::vector<std::string>{});
    if (step.reports == 2) continue;  // it was being removed
    EXPECT_EQ(node.tier().thaws(), step.there ? 0 : 1) << "it may have stood still";
    // The same request again, and the removal, are what they would have been.
    const auto again = Snapshot(node);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->existed(), step.there);
    EXPECT_EQ(again->calls(), 1u);
    EXPECT_TRUE(Remove(node).ok());
    EXPECT_TRUE(node.tier().images().empty());
  }
}

TEST(Killed, ARebuiltSandboxIsBackOrStillLost) {
  for (const std::string point :
       {"restore.call:1", "restore.call:2", "restore.made:1", "restore.recorded:1"}) {
    SCOPED_TRACE(point);
    base::ScratchDir dir;
    ExpectKilled("RebuildChild", dir.path(), point, 1);
    Node node(dir.path());
    const bool back = point == "restore.recorded:1";
    EXPECT_EQ(node.sandboxes().Get("box")->state(),
              back ? sandbox::SANDBOX_STATE_RUNNING : sandbox::SANDBOX_STATE_LOST);
    if (!back) {
      ASSERT_EQ(Rebuild(node, /*fork=*/false), absl::OkStatus());
      EXPECT_EQ(node.tier().files_of("box"), "a;b;");
    }
    RunCall(node, "c");
    EXPECT_EQ(node.sandboxes().Get("box")->state(), sandbox::SANDBOX_STATE_RUNNING);
  }
}

TEST(Killed, AForkIsThereOrNot) {
  for (const char* point : {"restore.call:1", "restore.call:2"}) {
    SCOPED_TRACE(point);
    base::ScratchDir dir;
    ExpectKilled("RebuildChild", dir.path(), std::string("fork ") + point, 1);
    Node node(dir.path());
    EXPECT_TRUE(absl::IsNotFound(node.sandboxes().Get("fork").status()));
    ASSERT_EQ(Rebuild(node, /*fork=*/true), absl::OkStatus());
    EXPECT_EQ(node.tier().files_of("fork"), "a;b;");
  }
}

}  // namespace
}  // namespace reprise::sandboxd
