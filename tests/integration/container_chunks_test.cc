// Containers whose layers are read on demand: what they see and write, that they live on without
// the daemon, and that containerd's own images stay usable beside.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "sandboxd/image/blob.h"
#include "sandboxd/image/image_mounts.h"
#include "tests/integration/container_snapshot_cases.h"

namespace reprise::sandboxd {
namespace {

class ContainerChunksTest : public SnapshotCases {
 protected:
  void SetUp() override {
    ContainerTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    if (access("/dev/fuse", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/fuse on this host";
    tier_ = MakeChunkTier();
    ASSERT_NE(tier_, nullptr);
    absl::StatusOr<sandbox::Image> image = tier_->ImportImage("chunked", BusyboxRoot());
    ASSERT_TRUE(image.ok()) << image.status();
    EXPECT_EQ(image->layers(), 1u);
    EXPECT_GT(image->size_bytes(), 0u);
    ImageMounts probe({Catalog(), std::string(REPRISE_BIN_DIR) + "/reprise-imagefs"});
    if (absl::Status server = probe.EnsureServer(); !server.ok()) GTEST_SKIP() << server;
  }
  void TearDown() override {
    ContainerTest::TearDown();
    tier_ = nullptr;
    ImageMounts mounts({Catalog(), std::string(REPRISE_BIN_DIR) + "/reprise-imagefs"});
    EXPECT_TRUE(mounts.Shutdown().ok());
  }
  std::string State() const { return scratch_.path() + "/chunk-state"; }
  ImageCatalogOptions Catalog() const { return {State() + "/images", ""}; }
  std::unique_ptr<Substrate> MakeChunkTier() {
    auto tier = MakeContainerTier({State(), REPRISE_BIN_DIR, Address(), /*chunk_images=*/true, ""});
    EXPECT_TRUE(tier.ok()) << tier.status();
    return tier.ok() ? *std::move(tier) : nullptr;
  }
  TestSandbox CreateChunked() {
    return Create([](sandbox::SandboxSpec& spec) { spec.set_image("chunked"); });
  }
};

TEST_F(ContainerChunksTest, ReadsItsImageAndKeepsItsWritesToItself) {
  TestSandbox one = CreateChunked(), two = CreateChunked();
  EXPECT_EQ(Run(one, "echo mine > /etc/written; rm -f /bin/wget; cat /etc/written").out, "mine\n");
  const Done other = Run(two, "ls /etc/written; test -e /bin/wget && echo there");
  EXPECT_EQ(other.out, "there\n");
  // The image itself came through unchanged: the shell that hashes it is part of it.
  EXPECT_EQ(Run(two, "sha256sum < /bin/busybox").out, [] {
    std::string digest = Sha256Digest(*base::ReadFile("/bin/busybox")).substr(7);
    return digest + "  -\n";
  }());
}

TEST_F(ContainerChunksTest, LivesOnWithoutTheDaemon) {
  TestSandbox box = CreateChunked();
  EXPECT_EQ(Run(box, "echo before > /kept").result.exit_code(), 0);
  tier_ = nullptr;
  tier_ = MakeChunkTier();
  ASSERT_NE(tier_, nullptr);
  ASSERT_TRUE(tier_->RecoverSandbox(box.ref()).ok());
  // Programs that were never read come from the image server, which the daemon's end left alone.
  EXPECT_EQ(Run(box, "cat /kept; sha256sum < /bin/busybox > /dev/null && echo read").out,
            "before\nread\n");
}

TEST_F(ContainerChunksTest, SnapshotsKeepWhatWasWritten) { KeepsWhatWasWritten(CreateChunked()); }
TEST_F(ContainerChunksTest, SnapshotsCostWhatChanged) { CostsWhatChanged(CreateChunked()); }

TEST_F(ContainerChunksTest, AnImageInUseOutlivesItsName) {
  TestSandbox box = CreateChunked();
  ASSERT_TRUE(tier_->RemoveImage("chunked").ok());
  EXPECT_EQ(Run(box, "sha256sum < /bin/busybox > /dev/null && echo read").out, "read\n");
  EXPECT_TRUE(absl::IsNotFound(tier_->RemoveImage("chunked")));
}

}  // namespace
}  // namespace reprise::sandboxd
