// The tiers of machines behind the program sandboxd, which is killed while a call runs in each.
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <filesystem>
#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "base/fd.h"
#include "reprise/sandbox/v1/sandbox.grpc.pb.h"
#include "sandboxd/microvm/box.h"
#include "tests/integration/sandboxd_process.h"

namespace reprise::sandboxd {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kAnswerMax = absl::Seconds(240);
constexpr uint64_t kMemoryBytes = 128 << 20;
constexpr char kBox[] = "box";

class MachineDaemonTest : public ::testing::TestWithParam<sandbox::Tier> {
 protected:
  void SetUp() override {
    daemon_.Start();
    absl::StatusOr<std::unique_ptr<SandboxClient>> client = daemon_.Connect();
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    const auto tiers = client_->ListTiers(Deadline());
    ASSERT_TRUE(tiers.ok()) << tiers.status();
    for (const sandbox::TierInfo& tier : tiers->tiers()) {
      if (tier.tier() == GetParam() && !tier.usable()) GTEST_SKIP() << tier.reason();
    }
    sandbox::CreateRequest create;
    create.set_sandbox_id(kBox);
    create.mutable_spec()->set_tier(GetParam());
    create.mutable_spec()->mutable_limits()->set_memory_bytes(kMemoryBytes);
    const auto made = client_->Create(create, Deadline());
    ASSERT_TRUE(made.ok()) << made.status();
  }
  void TearDown() override {
    if (IsSkipped() || HasFatalFailure()) return;
    EXPECT_TRUE(client_->Stop(kBox, Deadline()).ok());
    const int status = daemon_.End(SIGTERM);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    EXPECT_TRUE(std::filesystem::is_empty(Tier() + "/boxes"));
  }
  std::string Tier() const {
    return fmt::format("{}/sandboxd/{}", state_.path(),
                       GetParam() == sandbox::TIER_VM ? "vm" : "microvm");
  }
  // The one machine's supervisor, and the machine with it.
  void KillMachine() {
    std::vector<std::filesystem::path> boxes;
    for (const auto& entry : std::filesystem::directory_iterator(Tier() + "/boxes"))
      boxes.push_back(entry.path());
    ASSERT_EQ(boxes.size(), 1u);
    const base::UniqueFd lock(open((boxes.front() / "lock").c_str(), O_RDWR | O_CLOEXEC));
    struct flock ask {};
    ask.l_type = F_WRLCK;
    ask.l_whence = SEEK_SET;
    ASSERT_TRUE(lock.valid() && fcntl(lock.get(), F_GETLK, &ask) == 0 && ask.l_type != F_UNLCK);
    ASSERT_EQ(kill(ask.l_pid, SIGKILL), 0);
    while (microvm::BoxLives(boxes.front())) std::this_thread::yield();
  }
  static absl::Time Deadline() { return absl::Now() + kAnswerMax; }
  static sandbox::ExecuteRequest Request(const std::string& id, const std::string& script) {
    sandbox::ExecuteRequest request;
    request.set_sandbox_id(kBox);
    request.set_call_id(id);
    for (const std::string& argument : {std::string("sh"), std::string("-c"), script})
      request.add_argv(argument);
    return request;
  }

  const base::ScratchDir state_{"reprise-machine-daemon"};
  SandboxdProcess daemon_{state_.path(), {"--containerd", ""}};
  std::unique_ptr<SandboxClient> client_;
  int kept_ = 0;  // snapshots
};

TEST_P(MachineDaemonTest, ACallGoesOnWhileTheDaemonIsDead) {
  const sandbox::ExecuteRequest request =
      Request("long", "echo run >> runs; echo up; read line < go; cat runs; echo $line");
  ASSERT_TRUE(client_->ExecuteToEnd(Request("pipe", "mkfifo go"), Deadline()).ok());
  absl::Notification up;
  absl::StatusOr<SandboxClient::Finished> finished;
  std::string seen;
  std::thread caller([&] {
    finished = client_->ExecuteToEnd(request, Deadline(),
                                     [&](sandbox::Stream, uint64_t, std::string_view data) {
                                       seen += data;
                                       if (seen == "up\n") up.Notify();
                                     });
  });
  EXPECT_TRUE(up.WaitForNotificationWithTimeout(kAnswerMax));
  daemon_.End(SIGKILL);
  daemon_.Start();
  const auto release = client_->ExecuteToEnd(Request("go", "echo over > go"), Deadline());
  caller.join();
  ASSERT_TRUE(release.ok()) << release.status();
  ASSERT_TRUE(finished.ok()) << finished.status();
  EXPECT_EQ(finished->result.outcome(), sandbox::OUTCOME_EXITED)
      << finished->result.ShortDebugString();
  EXPECT_EQ(finished->out, "up\nrun\nover\n");
  EXPECT_EQ(seen, finished->out) << "each byte once, over the death of the daemon";
  const auto again = client_->ExecuteToEnd(request, Deadline());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->result.replayed());
  EXPECT_EQ(again->out, finished->out);
  EXPECT_EQ(client_->ExecuteToEnd(Request("count", "cat runs"), Deadline())->out, "run\n");
}

TEST_P(MachineDaemonTest, ADeadMachineLeavesTheEffectsOfACallOnce) {
  ASSERT_TRUE(
      client_->ExecuteToEnd(Request("before", "mkfifo go; echo before > log"), Deadline()).ok());
  sandbox::ExecuteRequest call =
      Request("call", "echo begun >> log; echo up; sleep 1; echo over >> log; cat log");
  call.set_on_interrupt(sandbox::INTERRUPT_POLICY_RESTORE);
  absl::Notification up;
  absl::StatusOr<SandboxClient::Finished> finished;
  std::thread caller([&] {
    finished = client_->ExecuteToEnd(call, Deadline(), [&](sandbox::Stream, uint64_t, auto) {
      if (!up.HasBeenNotified()) up.Notify();
    });
  });
  EXPECT_TRUE(up.WaitForNotificationWithTimeout(kAnswerMax));
  daemon_.End(SIGKILL);
  KillMachine();
  daemon_.Start();
  caller.join();
  ASSERT_TRUE(finished.ok()) << finished.status();
  EXPECT_EQ(finished->result.outcome(), sandbox::OUTCOME_EXITED)
      << finished->result.ShortDebugString();
  EXPECT_EQ(finished->out, "up\nbefore\nbegun\nover\n");
  EXPECT_EQ(client_->ExecuteToEnd(Request("after", "cat log"), Deadline())->out,
            "before\nbegun\nover\n");
}

TEST_P(MachineDaemonTest, ALostMachineIsRebuiltFromItsSnapshotAndItsLog) {
  ASSERT_TRUE(client_->ExecuteToEnd(Request("a", "echo one > a; cat a"), Deadline()).ok());
  sandbox::SnapshotRequest snapshot;
  snapshot.set_sandbox_id(kBox);
  const auto taken = client_->Snapshot(snapshot, Deadline());
  ASSERT_TRUE(taken.ok()) << taken.status();
  ASSERT_TRUE(
      client_->ExecuteToEnd(Request("b", "cat a; echo two >> a; wc -l < a"), Deadline()).ok());
  daemon_.End(SIGKILL);
  KillMachine();
  daemon_.Start();
  ASSERT_EQ(client_->Get(kBox, Deadline())->state(), sandbox::SANDBOX_STATE_LOST);
  const auto restored = client_->Restore(kBox, Deadline());
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->run_again(), 1u) << "a is in the snapshot";
  EXPECT_EQ(client_->ExecuteToEnd(Request("c", "cat a"), Deadline())->out, "one\ntwo\n");
  // A fork of it, once more when the one that it came from is gone.
  sandbox::ForkRequest fork;
  fork.set_sandbox_id(kBox);
  fork.set_new_id("fork");
  const auto forked = client_->Fork(fork, Deadline());
  ASSERT_TRUE(forked.ok()) << forked.status();
  sandbox::ExecuteRequest look = Request("look", "cat a; hostname");
  look.set_sandbox_id("fork");
  EXPECT_EQ(client_->ExecuteToEnd(look, Deadline())->out, "one\ntwo\nfork\n");
  EXPECT_TRUE(client_->Stop("fork", Deadline()).ok());
}

// Killed at each step of a snapshot: the sandbox goes on, its request, which the client sends
// again, works, and nothing is left of the first attempt.
TEST_P(MachineDaemonTest, ADaemonThatDiesInASnapshotLeavesNothing) {
  ASSERT_TRUE(client_->ExecuteToEnd(Request("a", "echo one > a"), Deadline()).ok());
  sandbox::SnapshotRequest snapshot;
  snapshot.set_sandbox_id(kBox);
  for (const char* const point :
       {"snapshot.pending", "machine.saved", "machine.kept", "snapshot.made", "snapshot.done"}) {
    daemon_.End(SIGTERM);
    daemon_.Start({"--fail-point", fmt::format("{}:1", point)});
    snapshot.set_snapshot_id(point);
    absl::StatusOr<sandbox::SnapshotInfo> taken;
    std::thread caller([&] { taken = client_->Snapshot(snapshot, Deadline()); });
    const int ended = daemon_.End(/*signal=*/0);
    EXPECT_TRUE(WIFSIGNALED(ended) && WTERMSIG(ended) == SIGKILL) << point;
    daemon_.Start();
    caller.join();
    ASSERT_TRUE(taken.ok()) << point << ": " << taken.status();
    EXPECT_EQ(taken->existed(), std::string(point) == "snapshot.done");
    EXPECT_EQ(client_->ExecuteToEnd(Request(point, "cat a"), Deadline())->out, "one\n");
    const std::string snapshots = Tier() + "/snapshots/machines";
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(snapshots), {}), ++kept_) << point;
  }
}

TEST_P(MachineDaemonTest, AWholePcHasAScreenAndAKeyboard) {
  const auto stub = sandbox::SandboxService::NewStub(
      grpc::CreateChannel(daemon_.address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext contexts[3];
  sandbox::ScreenshotRequest look;
  look.set_sandbox_id(kBox);
  sandbox::ScreenshotResponse picture;
  const grpc::Status seen = stub->Screenshot(&contexts[0], look, &picture);
  sandbox::SendInputRequest press;
  press.set_sandbox_id(kBox);
  press.add_events()->set_keys("ret");
  sandbox::SendInputResponse pressed;
  const grpc::Status sent = stub->SendInput(&contexts[1], press, &pressed);
  sandbox::ConsoleRequest listen;
  listen.set_sandbox_id(kBox);
  sandbox::ConsoleResponse heard;
  const grpc::Status said = stub->Console(&contexts[2], listen, &heard);
  for (const grpc::Status* const status : {&seen, &sent, &said}) {
    if (GetParam() == sandbox::TIER_VM) {
      EXPECT_TRUE(status->ok()) << status->error_message();
    } else {
      EXPECT_EQ(status->error_code(), grpc::StatusCode::UNIMPLEMENTED);
      EXPECT_THAT(status->error_message(), HasSubstr("TIER_MICROVM"));
    }
  }
  if (GetParam() != sandbox::TIER_VM) return;
  EXPECT_GT(picture.width(), 0u);
  EXPECT_THAT(heard.data(), HasSubstr("Linux version"));
  EXPECT_EQ(heard.offset() + heard.data().size(), heard.end());
}

INSTANTIATE_TEST_SUITE_P(Tiers, MachineDaemonTest,
                         ::testing::Values(sandbox::TIER_MICROVM, sandbox::TIER_VM),
                         [](const auto& info) { return sandbox::Tier_Name(info.param); });

}  // namespace
}  // namespace reprise::sandboxd
