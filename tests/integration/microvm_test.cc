// Calls in microVMs: the cases of every tier, then isolation, images, limits and the life of
// machines, each against a real guest.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>

#include "sandboxd/microvm/box.h"
#include "tests/integration/microvm_support.h"
#include "tests/integration/tier_cases.h"

namespace reprise::sandboxd {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

INSTANTIATE_TYPED_TEST_SUITE_P(Microvm, TierCases, MicrovmTest);

std::string BoxOf(const std::string& state, const TestSandbox& box) {
  return fmt::format("{}/microvm/boxes/{}", state, box.placement);
}
pid_t MachineOf(const std::string& state, const TestSandbox& box) {
  const absl::StatusOr<microvm::VmState> found = microvm::BoxState(BoxOf(state, box));
  EXPECT_TRUE(found.ok()) << found.status();
  return found.ok() ? static_cast<pid_t>(found->vmm_pid) : -1;
}

TEST_F(MicrovmTest, SaysWhatItRunsOn) {
  Create();
  const sandbox::TierInfo info = tier_->Describe();
  EXPECT_TRUE(info.usable()) << info.reason();
  EXPECT_THAT(info.reason(), AnyOf(HasSubstr("accelerator kvm"), HasSubstr("accelerator tcg")));
  // The next daemon of this host knows it without a probe.
  Restart();
  EXPECT_EQ(tier_->Describe().reason(), info.reason());
}

TEST_F(MicrovmTest, RefusesWhatItCannotDo) {
  auto create = [&](const std::function<void(sandbox::SandboxSpec&)>& change) {
    sandbox::SandboxSpec spec;
    Fill(spec);
    change(spec);
    return std::string(tier_->CreateSandbox("x", spec, nullptr).status().message());
  };
  EXPECT_THAT(create([](auto& spec) { spec.set_image("not-imported"); }),
              HasSubstr("import it first"));
  EXPECT_THAT(create([](auto& spec) { spec.set_runtime("runc"); }), HasSubstr("spec.runtime"));
  EXPECT_THAT(create([](auto& spec) { spec.add_binds()->set_host_path("/tmp"); }),
              HasSubstr("no host directory"));
  EXPECT_THAT(create([](auto& spec) { spec.mutable_limits()->set_memory_bytes(1 << 20); }),
              HasSubstr("memory_bytes"));
  const TestSandbox box = Create();
  Running nothing;
  sandbox::ExecuteRequest request = Shell(box, "true");
  request.mutable_limits()->set_memory_bytes(1 << 20);
  EXPECT_TRUE(absl::IsUnimplemented(
      tier_->Start(box.ref(), box.placement, request, nothing.recording->Sink()).status()));
}

TEST_F(MicrovmTest, ShowsNothingOfTheHostOrOfItsInit) {
  const TestSandbox box = Create();
  EXPECT_THAT(Run(box, "grep -E 'CapEff|CapBnd|CapPrm|NoNewPrivs' /proc/self/status").out,
              AllOf(HasSubstr("CapEff:\t0000000000000000"), HasSubstr("CapPrm:\t0000000000000000"),
                    HasSubstr("CapBnd:\t0000000000000000"), HasSubstr("NoNewPrivs:\t1")));
  EXPECT_EQ(Run(box, "ls /.reprise/run; cat /proc/1/comm").out, "reprise-agent\n");
  EXPECT_EQ(Run(box, "ls /dev | grep -E 'vport|vda|ttyS|mem|port' | head -1").out, "");
  std::string script;
  for (const char* const attempt :
       {"mount -t tmpfs none /tmp", "chroot / true", "ls /proc/1/root", "cat /proc/1/environ",
        "mknod /tmp/disk b 254 0", "echo x > /proc/sys/kernel/hostname",
        "echo x > /proc/sysrq-trigger", "head -c 1 /proc/kcore | grep -q .", "dmesg",
        "hostname other", "mount -o remount,rw /sys", "echo > /sys/power/state", "reboot -f",
        "insmod /bin/busybox"}) {
    script += fmt::format("({}) >/dev/null 2>&1 && echo \"possible: {}\"\n", attempt, attempt);
  }
  EXPECT_EQ(Run(box, script + "kill -9 1; echo fine").out, "fine\n");
  EXPECT_EQ(Run(box, "echo fine").out, "fine\n") << "one of the attempts broke the sandbox";
}

TEST_F(MicrovmTest, ClonesHaveNothingInCommonThatMustDiffer) {
  const TestSandbox a = Create(), b = Create();
  const std::string script =
      "cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname; head -c 16 /dev/urandom | "
      "od -An -tx1";
  auto lines = [](const std::string& text) {
    std::vector<std::string> out(1);
    for (const char c : text) c == '\n' ? (void)out.emplace_back() : out.back().push_back(c);
    out.pop_back();
    return out;
  };
  const std::vector<std::string> in_a = lines(Run(a, script).out), in_b = lines(Run(b, script).out);
  ASSERT_EQ(in_a.size(), 4u);
  ASSERT_EQ(in_b.size(), 4u);
  for (size_t i = 0; i < in_a.size(); ++i) {
    EXPECT_NE(in_a[i], in_b[i]);
    EXPECT_FALSE(in_a[i].empty());
  }
  const long now = std::stol(Run(a, "date +%s").out);
  EXPECT_NEAR(static_cast<double>(now), static_cast<double>(time(nullptr)), 5.0);
}

TEST_F(MicrovmTest, StartsFromAnImageAndLeavesItAsItWas) {
  const base::ScratchDir root("reprise-microvm-root");
  MakeBusyboxRoot(root.path());
  ASSERT_TRUE(base::WriteFileAtomic(root.path() + "/etc/of-the-image", "first\n").ok());
  const absl::StatusOr<sandbox::Image> image = tier_->ImportImage("env/base:1", root.path());
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_GT(image->size_bytes(), 0u);
  EXPECT_EQ(tier_->ListImages().value().size(), 1u);
  auto from_image = [](sandbox::SandboxSpec& spec) { spec.set_image("env/base:1"); };
  const TestSandbox a = Create(from_image);
  EXPECT_EQ(Run(a, "cat /etc/of-the-image; echo second > /etc/of-the-image; pwd").out,
            "first\n/work\n");
  const TestSandbox b = Create(from_image);
  EXPECT_EQ(Run(b, "cat /etc/of-the-image").out, "first\n");
  EXPECT_TRUE(tier_->RemoveImage("env/base:1").ok());
  EXPECT_TRUE(absl::IsNotFound(tier_->RemoveImage("env/base:1")));
  EXPECT_EQ(Run(b, "cat /etc/of-the-image").out, "first\n") << "a sandbox keeps what it has";
}

TEST_F(MicrovmTest, BoundsTheDisk) {
  const TestSandbox box =
      Create([](auto& spec) { spec.mutable_limits()->set_disk_bytes(8 << 20); });
  const Done done = Run(box, "dd if=/dev/zero of=/work/big bs=1M count=16; wc -c < /work/big");
  EXPECT_THAT(done.err, HasSubstr("No space left"));
  EXPECT_LE(std::stol(done.out), 8 << 20);
}

TEST_F(MicrovmTest, PausesAndResumes) {
  const TestSandbox box = Create();
  const sandbox::ExecuteRequest request =
      Shell(box, "echo up; while [ ! -e /work/go ]; do sleep 0.05; done; echo went");
  Running running = Start(box, request);
  ASSERT_NE(running.call, nullptr);
  EXPECT_TRUE(running.recording->WaitForText("up\n"));
  ASSERT_EQ(tier_->PauseSandbox(box.ref()), absl::OkStatus());
  ASSERT_EQ(tier_->PauseSandbox(box.ref()), absl::OkStatus()) << "pausing twice is one pause";
  EXPECT_EQ(microvm::BoxState(BoxOf(StateDir(), box))->paused, 1);
  EXPECT_TRUE(tier_->RecoverSandbox(box.ref()).ok()) << "a paused sandbox is not lost";
  // The next daemon finds it paused, attaches to its call, and leaves it paused.
  running.call.reset();
  Restart();
  ASSERT_TRUE(tier_->RecoverSandbox(box.ref()).ok());
  Running again;
  std::unique_ptr<CallSink> sink = again.recording->Sink();
  Attachment attachment =
      tier_->Reattach(box.ref(), box.placement, request.call_id(), {0, 0}, sink);
  ASSERT_EQ(attachment.state, AttachState::kAttached) << attachment.reason;
  EXPECT_EQ(microvm::BoxState(BoxOf(StateDir(), box))->paused, 1);
  tier_->RecoveryDone();
  ASSERT_EQ(tier_->ResumeSandbox(box.ref()), absl::OkStatus());
  ASSERT_EQ(tier_->ResumeSandbox(box.ref()), absl::OkStatus());
  EXPECT_EQ(microvm::BoxState(BoxOf(StateDir(), box))->paused, 0);
  Run(box, "touch /work/go");
  EXPECT_EQ(again.recording->WaitForEnd().outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_EQ(again.recording->out(), "up\nwent\n");
}

TEST_F(MicrovmTest, StopsWithoutATrace) {
  for (const bool paused : {false, true}) {
    const TestSandbox box = Create();
    Running running = Start(box, Shell(box, "trap '' TERM; echo up; while :; do sleep 1000; done"));
    ASSERT_NE(running.call, nullptr);
    EXPECT_TRUE(running.recording->WaitForText("up\n"));
    const pid_t machine = MachineOf(StateDir(), box);
    EXPECT_EQ(kill(machine, 0), 0);
    if (paused) {
      ASSERT_TRUE(tier_->PauseSandbox(box.ref()).ok());
    }
    ASSERT_EQ(tier_->StopSandbox(box.ref()), absl::OkStatus());
    EXPECT_EQ(running.recording->WaitForEnd().outcome(), sandbox::OUTCOME_SANDBOX_LOST);
    EXPECT_TRUE(tier_->StopSandbox(box.ref()).ok()) << "stopping twice is one stop";
    EXPECT_NE(kill(machine, 0), 0);
    EXPECT_FALSE(std::filesystem::exists(BoxOf(StateDir(), box)));
    EXPECT_TRUE(absl::IsNotFound(tier_->RecoverSandbox(box.ref())));
  }
}

TEST_F(MicrovmTest, TellsALostMachineFromALiveOne) {
  const TestSandbox box = Create(), other = Create();
  Running running = Start(box, Shell(box, "echo up; sleep 1000"));
  ASSERT_NE(running.call, nullptr);
  EXPECT_TRUE(running.recording->WaitForText("up\n"));
  ASSERT_EQ(kill(MachineOf(StateDir(), box), SIGKILL), 0);
  const sandbox::Result result = running.recording->WaitForEnd();
  EXPECT_EQ(result.outcome(), sandbox::OUTCOME_SANDBOX_LOST);
  EXPECT_THAT(result.message(), HasSubstr("ended by signal 9"));
  // UNAVAILABLE while its supervisor cleans up: ask again.
  absl::Status status = tier_->RecoverSandbox(box.ref());
  while (absl::IsUnavailable(status)) status = tier_->RecoverSandbox(box.ref());
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  std::unique_ptr<CallSink> sink = running.recording->Sink();
  EXPECT_EQ(tier_->Reattach(box.ref(), box.placement, "call/x", {0, 0}, sink).state,
            AttachState::kLost);
  EXPECT_EQ(tier_->Reattach(box.ref(), other.placement, "call/x", {0, 0}, sink).state,
            AttachState::kLost)
      << "a call of another machine says nothing about this one";
  EXPECT_TRUE(tier_->RecoverSandbox(other.ref()).ok());
}

TEST_F(MicrovmTest, RemovesWhatNoJournalKnows) {
  const TestSandbox kept = Create(), stranger = Create();
  const pid_t machine = MachineOf(StateDir(), stranger);
  Restart();
  ASSERT_TRUE(tier_->RecoverSandbox(kept.ref()).ok());
  tier_->RecoveryDone();
  EXPECT_NE(kill(machine, 0), 0);
  EXPECT_FALSE(std::filesystem::exists(BoxOf(StateDir(), stranger)));
  EXPECT_EQ(Run(kept, "echo fine").out, "fine\n");
}

}  // namespace
}  // namespace reprise::sandboxd
