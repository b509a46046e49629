// Snapshots of containers whose images containerd keeps.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sandboxd/container/containerd_client.h"
#include "tests/integration/container_snapshot_cases.h"

namespace reprise::sandboxd {
namespace {

class ContainerSnapshotTest : public SnapshotCases {
 protected:
  ContainerdClient client_{Address(), "reprise"};
};

TEST_F(ContainerSnapshotTest, KeepsWhatWasWritten) { KeepsWhatWasWritten(Create()); }
TEST_F(ContainerSnapshotTest, CostsWhatChanged) { CostsWhatChanged(Create()); }
TEST_F(ContainerSnapshotTest, IsTakenWhileAProgramWrites) { IsTakenWhileAProgramWrites(Create()); }

TEST_F(ContainerSnapshotTest, OfAPausedSandboxLeavesItPaused) {
  const TestSandbox box = Create();
  ASSERT_TRUE(tier_->PauseSandbox(box.ref()).ok());
  Take(box, "still");
  EXPECT_EQ(client_.GetTask(box.placement)->state, TaskState::kPaused);
}

TEST_F(ContainerSnapshotTest, OutlivesItsSandboxAndItsBase) {
  std::string image;
  {
    const TestSandbox box = Create();
    ASSERT_EQ(Run(box, "echo kept > /work/file; echo $?").out, "0\n");
    Take(box, "legacy");
    ASSERT_TRUE(tier_->StopSandbox(box.ref()).ok());
  }
  ASSERT_TRUE(tier_->RemoveImage("busybox").ok());
  EXPECT_EQ(Run(Create([](auto& spec) { spec.set_image("legacy"); }), "cat /work/file").out,
            "kept\n");
  ASSERT_TRUE(tier_->RemoveImage("legacy").ok());
}

}  // namespace
}  // namespace reprise::sandboxd
