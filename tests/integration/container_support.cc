#include "tests/integration/container_support.h"

namespace reprise::sandboxd {
namespace {

constexpr char kImage[] = "busybox";

// Made once for the process: starting containerd takes seconds.
struct Suite {
  std::string why_not = ContainerdProcess::WhyNot();
  std::unique_ptr<ContainerdProcess> containerd;
  std::unique_ptr<base::ScratchDir> root;
};
Suite* suite = nullptr;

class StopAtEnd : public ::testing::Environment {
 public:
  void TearDown() override {
    delete suite;
    suite = nullptr;
  }
};
[[maybe_unused]] ::testing::Environment* const stop_at_end =
    ::testing::AddGlobalTestEnvironment(new StopAtEnd);

}  // namespace

void ContainerTest::SetUpTestSuite() {
  if (suite != nullptr) return;
  suite = new Suite();
  if (!suite->why_not.empty()) return;
  absl::StatusOr<std::unique_ptr<ContainerdProcess>> containerd = ContainerdProcess::Start();
  if (!containerd.ok()) {
    suite->why_not = containerd.status().ToString();
    return;
  }
  suite->containerd = *std::move(containerd);
  suite->root = std::make_unique<base::ScratchDir>("reprise-busybox");
  MakeBusyboxRoot(suite->root->path());
}

const std::string& ContainerTest::Address() { return suite->containerd->address(); }
const std::string& ContainerTest::BusyboxRoot() { return suite->root->path(); }

void ContainerTest::SetUp() {
  if (!suite->why_not.empty()) GTEST_SKIP() << suite->why_not;
  tier_ = MakeTier();
  ASSERT_NE(tier_, nullptr);
  absl::StatusOr<sandbox::Image> image = tier_->ImportImage(kImage, BusyboxRoot());
  ASSERT_TRUE(image.ok()) << image.status();
}

std::unique_ptr<Substrate> ContainerTest::MakeTier() {
  absl::StatusOr<std::unique_ptr<Substrate>> tier =
      MakeContainerTier({scratch_.path() + "/state", REPRISE_BIN_DIR, Address()});
  EXPECT_TRUE(tier.ok()) << tier.status();
  return tier.ok() ? *std::move(tier) : nullptr;
}

void ContainerTest::Restart() {
  tier_.reset();
  tier_ = MakeTier();
}

void ContainerTest::Fill(sandbox::SandboxSpec& spec) {
  spec.set_tier(sandbox::TIER_CONTAINER);
  spec.set_image(kImage);
}

}  // namespace reprise::sandboxd
