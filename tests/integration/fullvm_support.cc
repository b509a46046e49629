#include "tests/integration/fullvm_support.h"

#include "absl/time/clock.h"

namespace reprise::sandboxd {
namespace {

// Of a test's sandbox: enough for busybox, little to save and map.
constexpr uint64_t kMemoryBytes = 128 << 20;
constexpr uint64_t kStopGraceMs = 200;
constexpr size_t kDiskBytes = 1 << 20, kSectorBytes = 512;
constexpr absl::Duration kConsoleWaitMax = absl::Seconds(60);

struct Suite {
  base::ScratchDir state{"reprise-vm-test"};
  std::shared_ptr<Substrate> tier;
  std::string why_not;

  void MakeTier() {
    tier.reset();
    FullvmTierOptions options;
    options.state_dir = state.path();
    options.helper_dir = REPRISE_BIN_DIR;
    options.stop_grace_ms = kStopGraceMs;
    absl::StatusOr<std::unique_ptr<Substrate>> made = MakeFullvmTier(options);
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

void FullvmTest::SetUpTestSuite() {
  if (suite != nullptr) return;
  suite = new Suite();
  suite->MakeTier();
}

const std::string& FullvmTest::StateDir() { return suite->state.path(); }

void FullvmTest::SetUp() {
  if (!suite->why_not.empty()) GTEST_SKIP() << suite->why_not;
  tier_ = suite->tier;
  ASSERT_NE(tier_, nullptr);
}

void FullvmTest::Restart() {
  tier_.reset();
  suite->MakeTier();
  tier_ = suite->tier;
}

void FullvmTest::Fill(sandbox::SandboxSpec& spec) {
  spec.set_tier(sandbox::TIER_VM);
  spec.mutable_limits()->set_memory_bytes(kMemoryBytes);
}

std::string FullvmTest::ConsoleOf(const TestSandbox& box) {
  std::string text;
  sandbox::ConsoleRequest request;
  while (true) {
    const absl::StatusOr<sandbox::ConsoleResponse> answer = tier_->Console(box.ref(), request);
    EXPECT_TRUE(answer.ok()) << answer.status();
    if (!answer.ok()) return text;
    text += answer->data();
    request.set_offset(answer->offset() + answer->data().size());
    if (request.offset() >= answer->end()) return text;
  }
}

std::string FullvmTest::WaitForConsole(const TestSandbox& box, const std::string& text) {
  const absl::Time deadline = absl::Now() + kConsoleWaitMax;
  while (absl::Now() < deadline) {
    std::string said = ConsoleOf(box);
    if (said.find(text) != std::string::npos) return said;
    absl::SleepFor(absl::Milliseconds(20));
  }
  return "";
}

// 16-bit code at 0x7c00: print the greeting; print the second sector; write 'X' over its first
// byte, there and back; print it again; then print every key that is pressed. Printing is int 10h
// (the screen) and a byte to port 3f8h (the serial console), the disk is int 13h, keys are int 16h.
std::string EchoDisk() {
  constexpr unsigned char kCode[] = {
      0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb, 0xbe,
      0x5e, 0x7c, 0xe8, 0x28, 0x00, 0xe8, 0x1c, 0x00, 0xc6, 0x06, 0x00, 0x80, 0x58, 0xb8,
      0x01, 0x03, 0xe8, 0x25, 0x00, 0xc6, 0x06, 0x00, 0x80, 0x00, 0xe8, 0x09, 0x00, 0xb4,
      0x00, 0xcd, 0x16, 0xe8, 0x22, 0x00, 0xeb, 0xf7, 0xb8, 0x01, 0x02, 0xe8, 0x0e, 0x00,
      0xbe, 0x00, 0x80, 0xac, 0x84, 0xc0, 0x74, 0x05, 0xe8, 0x0f, 0x00, 0xeb, 0xf6, 0xc3,
      0xbb, 0x00, 0x80, 0xb9, 0x02, 0x00, 0xba, 0x80, 0x00, 0xcd, 0x13, 0xc3, 0xb4, 0x0e,
      0xbb, 0x07, 0x00, 0xcd, 0x10, 0xba, 0xf8, 0x03, 0xee, 0xc3};
  static_assert(sizeof(kCode) == 0x5e, "the greeting follows the code");
  std::string disk(reinterpret_cast<const char*>(kCode), sizeof(kCode));
  disk += "a system of its own\r\n";
  disk.resize(kSectorBytes - 2, '\0');
  disk += "\x55\xaa";
  disk += "fresh\r\n";
  disk.resize(kDiskBytes, '\0');
  return disk;
}

}  // namespace reprise::sandboxd
