// Machines that wait for a sandbox: that a create takes one, that they are bounded, and that none
// outlives its daemon.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/fd.h"
#include "sandboxd/microvm/box.h"
#include "tests/integration/microvm_support.h"
#include "tests/integration/sandboxd_process.h"

namespace reprise::sandboxd {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Not;

namespace fs = std::filesystem;

constexpr absl::Duration kReadyMax = absl::Seconds(120);

std::set<std::string> BoxesIn(const std::string& dir) {
  std::set<std::string> boxes;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(dir, error)) boxes.insert(entry.path());
  return boxes;
}
// Those whose machine answers.
std::set<std::string> MachinesIn(const std::string& dir) {
  std::set<std::string> boxes = BoxesIn(dir);
  std::erase_if(boxes, [](const std::string& box) { return !microvm::BoxState(box).ok(); });
  return boxes;
}
// Counts what appears in a directory, also what is gone before anyone looks.
class Arrivals {
 public:
  explicit Arrivals(const std::string& dir) : fd_(inotify_init1(IN_NONBLOCK | IN_CLOEXEC)) {
    EXPECT_GE(inotify_add_watch(fd_.get(), dir.c_str(), IN_CREATE | IN_MOVED_TO), 0) << dir;
  }
  size_t Count() const {
    alignas(inotify_event) char buffer[4096];
    for (ssize_t size; (size = read(fd_.get(), buffer, sizeof(buffer))) > 0;) {
      for (ssize_t at = 0; at < size; ++count_) {
        const auto* event = reinterpret_cast<const inotify_event*>(buffer + at);
        at += static_cast<ssize_t>(sizeof(*event) + event->len);
      }
    }
    return count_;
  }

 private:
  const base::UniqueFd fd_;
  mutable size_t count_ = 0;
};
template <typename Condition>
bool Await(const Condition& condition) {
  const absl::Time deadline = absl::Now() + kReadyMax;
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

class MachinePoolTest : public MicrovmTest {
 protected:
  void TearDown() override {
    MicrovmTest::TearDown();
    if (tier_ == nullptr) return;
    Restart();
    EXPECT_TRUE(BoxesIn(Boxes()).empty()) << "a tier that ends takes its ready machines along";
  }
  std::string Boxes() const { return StateDir() + "/microvm/boxes"; }
  std::vector<std::string> Steps(const std::function<void(sandbox::SandboxSpec&)>& change) {
    sandbox::SandboxSpec spec;
    Fill(spec);
    change(spec);
    std::vector<sandbox::StepTime> steps;
    const std::string id = fmt::format("pool/box_{}", count_++);
    const absl::StatusOr<std::string> placement = tier_->CreateSandbox(id, spec, &steps);
    EXPECT_TRUE(placement.ok()) << placement.status();
    boxes_.push_back({id, spec, placement.value_or("")});
    std::vector<std::string> names;
    for (const sandbox::StepTime& step : steps) names.push_back(step.step());
    return names;
  }
  bool AwaitMachines(size_t count) {
    return Await([&] { return MachinesIn(Boxes()).size() == count; });
  }

 private:
  int count_ = 0;
};

TEST_F(MachinePoolTest, ACreateTakesOneThatWaits) {
  constexpr uint64_t kDisk = 8 << 20;
  RestartWithPool({1, 1ull << 30});
  ASSERT_TRUE(AwaitMachines(1)) << "one for a sandbox with nothing asked for is made at the start";
  EXPECT_THAT(Steps([](auto&) {}), Not(Contains("ready"))) << "none of this kind waits yet";
  ASSERT_TRUE(AwaitMachines(3)) << "one of each kind, and the sandbox";
  EXPECT_THAT(Steps([](auto& spec) { spec.mutable_limits()->set_disk_bytes(kDisk); }),
              Contains("ready"));
  const TestSandbox box = boxes_.back();
  const std::string look =
      "hostname; cat /etc/machine-id; date +%s; df -k /work | tail -1 | awk '{print $2}'";
  const std::string seen = Run(box, look).out;
  std::vector<std::string> lines(1);
  for (const char c : seen) c == '\n' ? (void)lines.emplace_back() : lines.back().push_back(c);
  ASSERT_EQ(lines.size(), 5u) << seen;
  EXPECT_EQ(lines[0], "pool-box-1");
  EXPECT_EQ(lines[1].size(), 32u);
  EXPECT_NEAR(std::stod(lines[2]), static_cast<double>(time(nullptr)), 5.0);
  EXPECT_EQ(std::stoull(lines[3]), kDisk >> 10);
  EXPECT_NE(Run(boxes_.front(), "cat /etc/machine-id").out, lines[1] + "\n");
  // It is one like any other.
  ASSERT_EQ(tier_->PauseSandbox(box.ref()), absl::OkStatus());
  ASSERT_EQ(tier_->ResumeSandbox(box.ref()), absl::OkStatus());
  EXPECT_EQ(Run(box, "echo fine").out, "fine\n");
  ASSERT_TRUE(AwaitMachines(4)) << "the pool is full again";
}

TEST_F(MachinePoolTest, HasNoMoreMemoryThanItMay) {
  // Room for none: what is made first shows it, and goes.
  RestartWithPool({4, 1});
  const Arrivals arrivals(Boxes());
  Steps([](auto&) {});
  ASSERT_TRUE(Await([&] { return arrivals.Count() > 1; })) << "one is tried";
  ASSERT_TRUE(Await([&] { return BoxesIn(Boxes()).size() == 1; })) << "and is too much";
  EXPECT_EQ(Run(boxes_.back(), "echo fine").out, "fine\n");
}

TEST_F(MachinePoolTest, NoneOutlivesADaemonThatIsKilled) {
  const base::ScratchDir state("reprise-machine-pool");
  SandboxdProcess daemon(state.path(), {"--containerd", "", "--machine-pool", "1"});
  daemon.Start();
  const std::string boxes = state.path() + "/sandboxd/microvm/boxes";
  ASSERT_TRUE(Await([&] { return !MachinesIn(boxes).empty(); }));
  const std::string box = *MachinesIn(boxes).begin();
  const auto machine = static_cast<pid_t>(microvm::BoxState(box)->vmm_pid);
  ASSERT_EQ(kill(machine, 0), 0);
  daemon.End(SIGKILL);
  EXPECT_TRUE(Await([&] { return !microvm::BoxLives(box) && kill(machine, 0) != 0; }));
  daemon.Start();
  EXPECT_TRUE(Await([&] { return !fs::exists(box); })) << "the next one clears its box away";
  const int status = daemon.End(SIGTERM);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  for (const char* const tier : {"microvm", "vm"}) {
    EXPECT_TRUE(BoxesIn(fmt::format("{}/sandboxd/{}/boxes", state.path(), tier)).empty()) << tier;
  }
}

}  // namespace
}  // namespace reprise::sandboxd
