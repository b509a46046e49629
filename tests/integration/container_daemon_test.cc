// The container tier behind the program sandboxd: calls that go on while the daemon is dead, a
// container that died, a host without containerd.
#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "reprise/sandbox/v1/sandbox.grpc.pb.h"
#include "sandboxd/client/sandbox_client.h"
#include "sandboxd/container/containerd_client.h"
#include "tests/integration/container_support.h"
#include "tests/integration/sandboxd_process.h"

namespace reprise::sandboxd {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kAnswerMax = absl::Seconds(90);
constexpr char kBox[] = "box";

class ContainerDaemonTest : public ContainerTest {
 protected:
  void SetUp() override {
    ContainerTest::SetUp();  // the image is in this containerd now, for every daemon
    if (IsSkipped() || HasFatalFailure()) return;
    daemon_ = std::make_unique<SandboxdProcess>(
        scratch_.path() + "/daemon",
        std::vector<std::string>{"--containerd", Address(), "--bind-root", scratch_.path()});
    daemon_->Start();
    absl::StatusOr<std::unique_ptr<SandboxClient>> client = daemon_->Connect();
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    sandbox::CreateRequest create;
    create.set_sandbox_id(kBox);
    create.mutable_spec()->set_tier(sandbox::TIER_CONTAINER);
    create.mutable_spec()->set_image("busybox");
    absl::StatusOr<sandbox::CreateResponse> made = client_->Create(create, Deadline());
    ASSERT_TRUE(made.ok()) << made.status();
  }
  void TearDown() override {
    if (client_ != nullptr) {
      EXPECT_TRUE(client_->Stop(kBox, Deadline()).ok());
      const int status = daemon_->End(SIGTERM);
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
      EXPECT_TRUE(containerd_.ListContainers().value().empty());
      // The containerd is that of all tests here, and snapshots outlive their daemon.
      const std::vector<ImageRecord> images = containerd_.ListImages().value();
      for (const ImageRecord& image : images) {
        if (image.name.find("busybox") == std::string::npos) {
          EXPECT_TRUE(containerd_.DeleteImage(image.name).ok()) << image.name;
        }
      }
    }
    ContainerTest::TearDown();
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

  // The container of a sandbox, by the name of the host that it was given.
  std::string ContainerOf(const std::string& sandbox_id) {
    const std::vector<ContainerRecord> containers = containerd_.ListContainers().value();
    for (const ContainerRecord& record : containers) {
      const TaskInfo task = containerd_.GetTask(record.id).value_or(TaskInfo());
      if (task.state != TaskState::kRunning && task.state != TaskState::kPaused) continue;
      if (record.spec_json.find(fmt::format("\"hostname\":\"{}\"", sandbox_id)) !=
          std::string::npos)
        return record.id;
    }
    ADD_FAILURE() << "no container of " << sandbox_id;
    return "";
  }
  // Its shim first, so that nobody tells how it ended; then init, and with it all that runs inside.
  void KillMachineOf(const std::string& container) {
    const auto init = static_cast<pid_t>(containerd_.GetTask(container).value().pid);
    const std::string stat = base::ReadFile(fmt::format("/proc/{}/stat", init)).value();
    pid_t shim = 0;
    ASSERT_EQ(sscanf(stat.c_str() + stat.rfind(')') + 1, " %*c %d", &shim), 1);
    ASSERT_GT(shim, 1);
    ASSERT_EQ(kill(shim, SIGKILL), 0);
    EXPECT_TRUE(kill(init, SIGKILL) == 0 || errno == ESRCH);
    // containerd finds the shim dead and clears up behind it.
    const absl::Time deadline = Deadline();
    auto gone = [&] {
      const absl::StatusOr<TaskInfo> task = containerd_.GetTask(container);
      return task.ok() && (task->state == TaskState::kNone || task->state == TaskState::kStopped);
    };
    while (!gone() && absl::Now() < deadline) std::this_thread::yield();
    EXPECT_TRUE(gone());
  }

  ContainerdClient containerd_{Address(), "reprise"};
  std::unique_ptr<SandboxdProcess> daemon_;
  std::unique_ptr<SandboxClient> client_;
};

TEST_F(ContainerDaemonTest, ACallGoesOnWhileTheDaemonIsDead) {
  const sandbox::ExecuteRequest request =
      Request("long", "echo run >> runs; echo up; read -t 60 line < go; cat runs; echo $line");
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
  daemon_->End(SIGKILL);
  daemon_->Start();
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

TEST_F(ContainerDaemonTest, ADeadContainerIsLostAndSoAreItsCalls) {
  const std::vector<ContainerRecord> containers = containerd_.ListContainers().value();
  ASSERT_EQ(containers.size(), 1u);
  ASSERT_EQ(
      kill(static_cast<pid_t>(containerd_.GetTask(containers.front().id).value().pid), SIGKILL), 0);
  ASSERT_TRUE(containerd_.WaitTask(containers.front().id, 10'000).ok());
  const auto finished = client_->ExecuteToEnd(Request("late", "echo never"), Deadline());
  ASSERT_TRUE(finished.ok()) << finished.status();
  EXPECT_EQ(finished->result.outcome(), sandbox::OUTCOME_SANDBOX_LOST)
      << finished->result.ShortDebugString();
  // The tier is asked about the sandbox while the answer is on its way: calls that come before it
  // has answered are lost too.
  absl::Status refused;
  for (int i = 0; i < 100 && refused.ok(); ++i) {
    const auto next =
        client_->ExecuteToEnd(Request(fmt::format("later/{}", i), "true"), Deadline());
    refused = next.status();
    if (next.ok()) {
      EXPECT_EQ(next->result.outcome(), sandbox::OUTCOME_SANDBOX_LOST);
    }
  }
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_EQ(client_->Get(kBox, Deadline())->state(), sandbox::SANDBOX_STATE_LOST);
}

// The machine's death, as far as a sandbox can tell: the daemon, the shim and all of the container.
TEST_F(ContainerDaemonTest, ADeadMachineLeavesTheEffectsOfACallOnce) {
  const std::string door = scratch_.path() + "/door";
  ASSERT_EQ(mkdir(door.c_str(), 0777), 0);
  ASSERT_EQ(mkfifo((door + "/go").c_str(), 0666), 0);
  ASSERT_EQ(chmod((door + "/go").c_str(), 0666), 0);
  sandbox::CreateRequest create;
  create.set_sandbox_id("dies");
  create.mutable_spec()->set_tier(sandbox::TIER_CONTAINER);
  create.mutable_spec()->set_image("busybox");
  sandbox::Bind* bind = create.mutable_spec()->add_binds();
  bind->set_host_path(door);
  bind->set_sandbox_path("/door");
  ASSERT_TRUE(client_->Create(create, Deadline()).ok());
  auto request = [](const std::string& id, const std::string& script) {
    sandbox::ExecuteRequest made = Request(id, script);
    made.set_sandbox_id("dies");
    return made;
  };
  ASSERT_TRUE(client_->ExecuteToEnd(request("before", "echo before > /work/log"), Deadline()).ok());
  sandbox::ExecuteRequest call = request("call",
                                         "echo begun >> /work/log; echo up; read line < /door/go;"
                                         " echo $line >> /work/log; cat /work/log");
  call.set_on_interrupt(sandbox::INTERRUPT_POLICY_RESTORE);
  absl::Notification up;
  absl::StatusOr<SandboxClient::Finished> finished;
  std::thread caller([&] {
    finished = client_->ExecuteToEnd(call, Deadline(), [&](sandbox::Stream, uint64_t, auto) {
      if (!up.HasBeenNotified()) up.Notify();
    });
  });
  EXPECT_TRUE(up.WaitForNotificationWithTimeout(kAnswerMax));
  const std::string container = ContainerOf("dies");
  daemon_->End(SIGKILL);
  KillMachineOf(container);
  daemon_->Start();
  {
    // Opens when the call that was begun anew has come as far, and stays open: what the reader of
    // the dead machine did not take is for the next.
    const base::UniqueFd go(open((door + "/go").c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_TRUE(go.valid());
    EXPECT_TRUE(base::WriteAll(go.get(), "over\n", "the door").ok());
    caller.join();
  }
  ASSERT_TRUE(finished.ok()) << finished.status();
  EXPECT_EQ(finished->result.outcome(), sandbox::OUTCOME_EXITED)
      << finished->result.ShortDebugString();
  EXPECT_EQ(finished->out, "up\nbefore\nbegun\nover\n");
  EXPECT_EQ(client_->ExecuteToEnd(request("after", "cat /work/log"), Deadline())->out,
            "before\nbegun\nover\n");
  EXPECT_NE(ContainerOf("dies"), container);
  EXPECT_TRUE(client_->Stop("dies", Deadline()).ok());
}

TEST_F(ContainerDaemonTest, ALostSandboxIsRebuiltFromItsSnapshotAndItsLog) {
  ASSERT_TRUE(
      client_->ExecuteToEnd(Request("a", "echo one > /work/a; cat /work/a"), Deadline()).ok());
  sandbox::SnapshotRequest snapshot;
  snapshot.set_sandbox_id(kBox);
  ASSERT_TRUE(client_->Snapshot(snapshot, Deadline()).ok());
  ASSERT_TRUE(client_
                  ->ExecuteToEnd(Request("b", "cat /work/a; echo two >> /work/a; wc -l < /work/a"),
                                 Deadline())
                  .ok());
  const std::string container = ContainerOf(kBox);
  daemon_->End(SIGKILL);
  KillMachineOf(container);
  daemon_->Start();
  ASSERT_EQ(client_->Get(kBox, Deadline())->state(), sandbox::SANDBOX_STATE_LOST);
  const auto restored = client_->Restore(kBox, Deadline());
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->run_again(), 1u) << "a is in the snapshot";
  EXPECT_EQ(client_->ExecuteToEnd(Request("c", "cat /work/a"), Deadline())->out, "one\ntwo\n");
  // What is no function of the files is told.
  ASSERT_TRUE(
      client_->ExecuteToEnd(Request("d", "cat /proc/sys/kernel/random/uuid"), Deadline()).ok());
  const std::string again = ContainerOf(kBox);
  daemon_->End(SIGKILL);
  KillMachineOf(again);
  daemon_->Start();
  const auto differs = client_->Restore(kBox, Deadline());
  EXPECT_TRUE(absl::IsFailedPrecondition(differs.status())) << differs.status();
  EXPECT_THAT(std::string(differs.status().message()),
              HasSubstr("DIVERGED: call d: stdout differs at byte "));
  EXPECT_EQ(client_->Get(kBox, Deadline())->state(), sandbox::SANDBOX_STATE_LOST);
}

TEST_F(ContainerDaemonTest, WithoutContainerdTheDaemonStartsAndSaysWhatToDo) {
  const std::string nowhere = scratch_.path() + "/no.sock";
  SandboxdProcess alone(scratch_.path() + "/alone", {"--containerd", nowhere});
  alone.Start();
  const auto client = alone.Connect();
  ASSERT_TRUE(client.ok()) << client.status();
  const auto tiers = (*client)->ListTiers(Deadline());
  ASSERT_TRUE(tiers.ok()) << tiers.status();
  int containers = 0;
  for (const sandbox::TierInfo& tier : tiers->tiers()) {
    if (tier.tier() != sandbox::TIER_CONTAINER) continue;
    ++containers;
    EXPECT_FALSE(tier.usable());
    EXPECT_THAT(tier.reason(), HasSubstr(nowhere));
    EXPECT_THAT(tier.reason(), HasSubstr("start containerd: "));
  }
  EXPECT_EQ(containers, 1);
  // Asked without the client's retries.
  const auto stub = sandbox::SandboxService::NewStub(
      grpc::CreateChannel(alone.address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  sandbox::CreateRequest request;
  request.mutable_spec()->set_tier(sandbox::TIER_CONTAINER);
  request.mutable_spec()->set_image("busybox");
  sandbox::CreateResponse response;
  const grpc::Status refused = stub->Create(&context, request, &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.error_message(), HasSubstr("start containerd: "));
}

}  // namespace
}  // namespace reprise::sandboxd
