// The life of containers: pausing, stopping without a trace, and finding everything again after the
// tier object is gone, as after a kill of the daemon.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "sandboxd/container/containerd_client.h"
#include "sandboxd/container/oom_watch.h"
#include "sandboxd/image/blob.h"
#include "tests/integration/container_support.h"

namespace reprise::sandboxd {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

class ContainerLifeTest : public ContainerTest {
 protected:
  ContainerdClient client_{Address(), "reprise"};
};

TEST_F(ContainerLifeTest, PausesAndResumes) {
  const TestSandbox box = Create();
  Running running =
      Start(box, Shell(box, "echo up; while [ ! -e /work/go ]; do :; done; echo went"));
  ASSERT_NE(running.call, nullptr);
  EXPECT_TRUE(running.recording->WaitForText("up\n"));
  ASSERT_EQ(tier_->PauseSandbox(box.ref()), absl::OkStatus());
  ASSERT_EQ(tier_->PauseSandbox(box.ref()), absl::OkStatus()) << "pausing twice is one pause";
  EXPECT_EQ(client_.GetTask(box.placement)->state, TaskState::kPaused);
  EXPECT_TRUE(tier_->RecoverSandbox(box.ref()).ok()) << "a frozen sandbox is not lost";
  ASSERT_TRUE(tier_->ResumeSandbox(box.ref()).ok());
  ASSERT_TRUE(tier_->ResumeSandbox(box.ref()).ok());
  EXPECT_EQ(client_.GetTask(box.placement)->state, TaskState::kRunning);
  Run(box, "touch /work/go");
  EXPECT_EQ(running.recording->WaitForEnd().outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_EQ(running.recording->out(), "up\nwent\n");
}

TEST_F(ContainerLifeTest, StopsWithoutATrace) {
  for (const bool paused : {false, true}) {
    const TestSandbox box = Create([&](auto& spec) {
      sandbox::Bind* bind = spec.add_binds();
      bind->set_host_path(BusyboxRoot());
      bind->set_sandbox_path("/mnt");
    });
    Running running = Start(box, Shell(box, "trap '' TERM; echo up; while :; do sleep 1000; done"));
    ASSERT_NE(running.call, nullptr);
    EXPECT_TRUE(running.recording->WaitForText("up\n"));
    const uint32_t pid = client_.GetTask(box.placement)->pid;
    EXPECT_EQ(kill(static_cast<pid_t>(pid), 0), 0);
    EXPECT_TRUE(OomKills(box.placement).has_value())
        << "the container's memory cgroup is not where it should be";
    if (paused) {
      ASSERT_TRUE(tier_->PauseSandbox(box.ref()).ok());
    }
    ASSERT_TRUE(tier_->StopSandbox(box.ref()).ok());
    EXPECT_EQ(running.recording->WaitForEnd().outcome(), sandbox::OUTCOME_SANDBOX_LOST);
    EXPECT_TRUE(tier_->StopSandbox(box.ref()).ok()) << "stopping twice is one stop";
    EXPECT_TRUE(absl::IsNotFound(client_.GetContainer(box.placement).status()));
    EXPECT_THAT(client_.ListSnapshots().value(), Not(Contains(box.placement)));
    EXPECT_NE(kill(static_cast<pid_t>(pid), 0), 0);
    EXPECT_FALSE(
        std::filesystem::exists(scratch_.path() + "/state/container/boxes/" + box.placement));
    EXPECT_THAT(base::ReadFile("/proc/self/mountinfo").value(), Not(HasSubstr(box.placement)));
    for (const auto& hierarchy : std::filesystem::directory_iterator("/sys/fs/cgroup")) {
      EXPECT_FALSE(std::filesystem::exists(hierarchy.path().string() + CgroupPath(box.placement)))
          << hierarchy;
    }
    EXPECT_FALSE(tier_->RecoverSandbox(box.ref()).ok());
  }
}

TEST_F(ContainerLifeTest, ReattachesToAFrozenSandbox) {
  const TestSandbox box = Create();
  const sandbox::ExecuteRequest request =
      Shell(box, "echo up; while [ ! -e /work/go ]; do :; done; echo went");
  Running running = Start(box, request);
  EXPECT_TRUE(running.recording->WaitForText("up\n"));
  ASSERT_TRUE(tier_->PauseSandbox(box.ref()).ok());
  running.call.reset();
  tier_ = MakeTier();
  ASSERT_TRUE(tier_->RecoverSandbox(box.ref()).ok());
  Running again;
  std::unique_ptr<CallSink> sink = again.recording->Sink();
  Attachment attachment =
      tier_->Reattach(box.ref(), box.placement, request.call_id(), {0, 0}, sink);
  ASSERT_EQ(attachment.state, AttachState::kAttached) << attachment.reason;
  EXPECT_EQ(client_.GetTask(box.placement)->state, TaskState::kPaused) << "it stays frozen";
  tier_->RecoveryDone();
  ASSERT_TRUE(tier_->ResumeSandbox(box.ref()).ok());
  Run(box, "touch /work/go");
  EXPECT_EQ(again.recording->WaitForEnd().outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_EQ(again.recording->out(), "up\nwent\n");
}

TEST_F(ContainerLifeTest, TellsALostSandboxFromALiveOne) {
  const TestSandbox box = Create(), other = Create();
  Running running = Start(box, Shell(box, "echo up; sleep 1000"));
  ASSERT_NE(running.call, nullptr);
  EXPECT_TRUE(running.recording->WaitForText("up\n"));
  ASSERT_EQ(kill(static_cast<pid_t>(client_.GetTask(box.placement)->pid), SIGKILL), 0);
  EXPECT_EQ(running.recording->WaitForEnd().outcome(), sandbox::OUTCOME_SANDBOX_LOST);
  ASSERT_TRUE(client_.WaitTask(box.placement, 10'000).ok());
  const absl::Status status = tier_->RecoverSandbox(box.ref());
  EXPECT_TRUE(!status.ok() && !absl::IsUnavailable(status)) << status;
  std::unique_ptr<CallSink> sink = running.recording->Sink();
  EXPECT_EQ(tier_->Reattach(box.ref(), box.placement, "call/x", {0, 0}, sink).state,
            AttachState::kLost);
  EXPECT_EQ(tier_->Reattach(box.ref(), other.placement, "call/x", {0, 0}, sink).state,
            AttachState::kLost)
      << "a call of another container says nothing about this one";
  EXPECT_TRUE(tier_->RecoverSandbox(other.ref()).ok());
}

TEST_F(ContainerLifeTest, RemovesWhatNoJournalKnows) {
  const TestSandbox kept = Create(), stranger = Create();
  tier_.reset();
  // Another daemon's container in the same containerd is none of its business.
  absl::StatusOr<std::unique_ptr<Substrate>> other =
      MakeContainerTier({scratch_.path() + "/other", REPRISE_BIN_DIR, Address()});
  ASSERT_TRUE(other.ok());
  const absl::StatusOr<std::string> foreign = (*other)->CreateSandbox("other", kept.spec, nullptr);
  ASSERT_TRUE(foreign.ok()) << foreign.status();

  tier_ = MakeTier();
  ASSERT_TRUE(tier_->RecoverSandbox(kept.ref()).ok());
  tier_->RecoveryDone();
  EXPECT_TRUE(absl::IsNotFound(client_.GetContainer(stranger.placement).status()));
  EXPECT_TRUE(client_.GetContainer(*foreign).ok());
  EXPECT_EQ(Run(kept, "echo fine").out, "fine\n");
  EXPECT_TRUE((*other)->StopSandbox({"other", &kept.spec, *foreign}).ok());
}

TEST_F(ContainerLifeTest, SaysWhatIsMissingOnThisHost) {
  sandbox::TierInfo info = tier_->Describe();
  EXPECT_TRUE(info.usable()) << info.reason();
  EXPECT_THAT(info.reason(), HasSubstr("user namespaces"));
  EXPECT_EQ(info.verbs().at("execute"), "yes");
  EXPECT_GT(info.default_limits().memory_bytes(), 0u);
  const std::string nowhere = scratch_.path() + "/no.sock";
  absl::StatusOr<std::unique_ptr<Substrate>> without =
      MakeContainerTier({scratch_.path() + "/without", REPRISE_BIN_DIR, nowhere});
  ASSERT_TRUE(without.ok()) << without.status();
  info = (*without)->Describe();
  EXPECT_FALSE(info.usable());
  EXPECT_THAT(info.reason(), AllOf(HasSubstr(nowhere), HasSubstr("systemctl start containerd")));
  sandbox::SandboxSpec spec;
  spec.set_image("busybox");
  EXPECT_TRUE(absl::IsUnavailable((*without)->CreateSandbox("x", spec, nullptr).status()));
  EXPECT_TRUE(absl::IsUnavailable((*without)->RecoverSandbox({"x", &spec, "reprise-1234"})));
  (*without)->RecoveryDone();
  absl::StatusOr<std::unique_ptr<Substrate>> off =
      MakeContainerTier({scratch_.path() + "/off", REPRISE_BIN_DIR, ""});
  ASSERT_TRUE(off.ok());
  EXPECT_THAT((*off)->Describe().reason(), HasSubstr("turned off"));
}

}  // namespace
}  // namespace reprise::sandboxd
