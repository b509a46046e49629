#include "tests/integration/microvm_support.h"

namespace reprise::sandboxd {
namespace {

// Of a test's sandbox: enough for busybox, little to save and map.
constexpr uint64_t kMemoryBytes = 128 << 20;

struct Suite {
  base::ScratchDir state{"reprise-microvm-test"};
  std::shared_ptr<Substrate> tier;
  std::string why_not;

  void MakeTier(microvm::ReadyPool::Limits ready = {}) {
    tier.reset();
    MicrovmTierOptions options;
    options.ready = ready;
    options.state_dir = state.path();
    options.helper_dir = REPRISE_BIN_DIR;
    absl::StatusOr<std::unique_ptr<Substrate>> made = MakeMicrovmTier(options);
    ASSERT_TRUE(made.ok()) << made.status();
    tier = *std::move(made);
    const sandbox::TierInfo info = tier->Describe();
    if (!info.usable()) why_not = info.reason();
  }
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

void MicrovmTest::SetUpTestSuite() {
  if (suite != nullptr) return;
  suite = new Suite();
  suite->MakeTier();
}

const std::string& MicrovmTest::StateDir() { return suite->state.path(); }

void MicrovmTest::SetUp() {
  if (!suite->why_not.empty()) GTEST_SKIP() << suite->why_not;
  tier_ = suite->tier;
  ASSERT_NE(tier_, nullptr);
}

void MicrovmTest::Restart() {
  tier_.reset();
  suite->MakeTier();
  tier_ = suite->tier;
}

void MicrovmTest::RestartWithPool(microvm::ReadyPool::Limits limits) {
  tier_.reset();
  suite->MakeTier(limits);
  tier_ = suite->tier;
  tier_->RecoveryDone();
}

void MicrovmTest::Fill(sandbox::SandboxSpec& spec) {
  spec.set_tier(sandbox::TIER_MICROVM);
  spec.mutable_limits()->set_memory_bytes(kMemoryBytes);
}

}  // namespace reprise::sandboxd
