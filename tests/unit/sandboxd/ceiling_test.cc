// Goal: the bounds over all sandboxes of a daemon hold whatever comes and goes. Method: the real
// manager and journal over a scripted tier whose sandboxes have a memory limit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "tests/unit/sandboxd/node.h"

namespace reprise::sandboxd {
namespace {

using testing::HasSubstr;

constexpr uint64_t kDefaultBytes = 1 << 28;  // the scripted tier's

class CeilingTest : public testing::Test {
 protected:
  void SetUp() override {
    SandboxOptions options;
    options.sandboxes_max = 6;
    options.memory_bytes_max = 4 * kDefaultBytes;
    options.journal_health = [] { return absl::OkStatus(); };
    manager_ = std::make_unique<SandboxManager>(
        options, &node_.log(), SandboxManager::Tiers{{sandbox::TIER_CONTAINER, &tier_}});
  }
  absl::Status Make(const std::string& id, uint64_t memory_bytes = 0) {
    sandbox::CreateRequest request;
    request.set_sandbox_id(id);
    request.mutable_spec()->set_tier(sandbox::TIER_CONTAINER);
    request.mutable_spec()->mutable_limits()->set_memory_bytes(memory_bytes);
    return manager_->Create(request).status();
  }
  void Stop(const std::string& id) { ASSERT_TRUE(manager_->Stop(id, [] {}).ok()); }

  Node node_;
  ScriptedSubstrate tier_;
  std::unique_ptr<SandboxManager> manager_;
};

TEST_F(CeilingTest, MemoryLimitsTogetherStayBelowTheBound) {
  ASSERT_TRUE(Make("a").ok());  // the tier's default
  ASSERT_TRUE(Make("b", 2 * kDefaultBytes).ok());
  const absl::Status refused = Make("c", kDefaultBytes + 1);
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(refused.message(), HasSubstr("bound of 1073741824"));
  ASSERT_TRUE(Make("c", kDefaultBytes).ok());  // nothing of the refused one is left
  EXPECT_TRUE(absl::IsResourceExhausted(Make("d", 1)));
  // What is there is answered, and what is stopped counts no more.
  EXPECT_TRUE(Make("b", 2 * kDefaultBytes).ok());
  Stop("b");
  EXPECT_TRUE(Make("d", 2 * kDefaultBytes).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(Make("e", 1)));
}

TEST_F(CeilingTest, SandboxesThatAreMadeAtOneTimeCountToo) {
  std::vector<std::thread> threads;
  std::atomic<int> made{0};
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&, i] { made += Make("s" + std::to_string(i)).ok() ? 1 : 0; });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(made, 4);
  // Rivals may have refused each other; there is room for the rest now.
  for (int i = 0; made < 4; ++i, ++made) ASSERT_TRUE(Make("t" + std::to_string(i)).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(Make("u")));
}

TEST_F(CeilingTest, TheirNumberIsBounded) {
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(Make("s" + std::to_string(i), 1).ok());
  const absl::Status refused = Make("s6", 1);
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  Stop("s3");
  EXPECT_TRUE(Make("s6", 1).ok());
}

}  // namespace
}  // namespace reprise::sandboxd
