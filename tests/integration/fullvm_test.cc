// What only the vm tier has, each against a real machine: console, screen, keyboard, disks with
// systems of their own.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>

#include "absl/time/clock.h"
#include "sandboxd/image/blob.h"
#include "sandboxd/microvm/box.h"
#include "tests/integration/fullvm_support.h"

namespace reprise::sandboxd {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kEchoImage[] = "os/echo:1";

std::string BoxOf(const std::string& state, const TestSandbox& box) {
  return fmt::format("{}/vm/boxes/{}", state, box.placement);
}
pid_t MachineOf(const std::string& state, const TestSandbox& box) {
  const absl::StatusOr<microvm::VmState> found = microvm::BoxState(BoxOf(state, box));
  EXPECT_TRUE(found.ok()) << found.status();
  return found.ok() ? static_cast<pid_t>(found->vmm_pid) : -1;
}

uint32_t Big32(const std::string& data, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(data.at(at + i));
  return value;
}

// A sandbox with a system of its own, which no agent comes with.
class OwnSystemTest : public FullvmTest {
 protected:
  void SetUp() override {
    FullvmTest::SetUp();
    if (IsSkipped()) return;
    ASSERT_TRUE(base::WriteFileAtomic(Source(), EchoDisk()).ok());
    const absl::StatusOr<sandbox::Image> image = tier_->ImportImage(kEchoImage, Source());
    ASSERT_TRUE(image.ok()) << image.status();
    EXPECT_EQ(image->digest(), Sha256Digest(EchoDisk()));
    EXPECT_EQ(image->size_bytes(), EchoDisk().size());
  }
  std::string Source() const { return sources_.path() + "/disk"; }
  TestSandbox Boot(const std::function<void(sandbox::SandboxSpec&)>& change = {}) {
    TestSandbox box = Create([&](auto& spec) {
      spec.set_image(kEchoImage);
      if (change) change(spec);
    });
    EXPECT_THAT(WaitForConsole(box, "resh\r\n"), HasSubstr("a system of its own\r\n"));
    return box;
  }
  absl::Status Send(const TestSandbox& box,
                    const std::function<void(sandbox::InputEvent*)>& event) {
    sandbox::SendInputRequest request;
    event(request.add_events());
    return tier_->SendInput(box.ref(), request);
  }
  std::string Picture(const TestSandbox& box) {
    const absl::StatusOr<sandbox::ScreenshotResponse> shot = tier_->Screenshot(box.ref());
    EXPECT_TRUE(shot.ok()) << shot.status();
    return shot.ok() ? shot->png() : "";
  }
  // Of the disk in the store, which all its machines share.
  std::string StoredDigest() {
    std::string found;
    for (const auto& entry : std::filesystem::directory_iterator(StateDir() + "/vm/disks/files"))
      found += Sha256Digest(base::ReadFile(entry.path()).value_or("")) + "\n";
    return found;
  }

  const base::ScratchDir sources_{"reprise-vm-disks"};
};

TEST_F(FullvmTest, SaysWhatItRunsOnAndWhatItCan) {
  Create();
  const sandbox::TierInfo info = tier_->Describe();
  EXPECT_TRUE(info.usable()) << info.reason();
  EXPECT_EQ(info.tier(), sandbox::TIER_VM);
  EXPECT_THAT(info.reason(), AnyOf(HasSubstr("accelerator kvm"), HasSubstr("accelerator tcg")));
  for (const char* const verb : {"execute", "files", "pause", "console", "screenshot", "input"})
    EXPECT_EQ(info.verbs().at(verb), "yes");
  sandbox::SandboxSpec spec;
  Fill(spec);
  spec.add_binds()->set_host_path("/tmp");
  EXPECT_THAT(std::string(tier_->CreateSandbox("x", spec, nullptr).status().message()),
              HasSubstr("the vm tier shares no host directory"));
}

TEST_F(FullvmTest, ShowsTheKernelsLinesOnConsoleAndScreen) {
  const TestSandbox box = Create();
  EXPECT_THAT(ConsoleOf(box), HasSubstr("Linux version"));
  const absl::StatusOr<sandbox::ScreenshotResponse> shot = tier_->Screenshot(box.ref());
  ASSERT_TRUE(shot.ok()) << shot.status();
  EXPECT_EQ(shot->png().substr(0, 8), std::string("\x89PNG\r\n\x1a\n", 8));
  EXPECT_EQ(shot->png().substr(12, 4), "IHDR");
  EXPECT_EQ(Big32(shot->png(), 16), shot->width());
  EXPECT_EQ(Big32(shot->png(), 20), shot->height());
  EXPECT_GE(shot->width(), 640u);
  EXPECT_GE(shot->height(), 400u);
  EXPECT_THAT(shot->png(), HasSubstr("IEND")) << "the picture is whole";
  // Nothing of it stays in the sandbox's directory.
  for (const auto& entry : std::filesystem::directory_iterator(BoxOf(StateDir(), box)))
    EXPECT_THAT(entry.path().filename().string(), Not(HasSubstr("screenshot")));
}

TEST_F(FullvmTest, StartsFromAnImageAndLeavesItAsItWas) {
  const base::ScratchDir root("reprise-vm-root");
  MakeBusyboxRoot(root.path());
  ASSERT_TRUE(base::WriteFileAtomic(root.path() + "/etc/of-the-image", "first\n").ok());
  const absl::StatusOr<sandbox::Image> image = tier_->ImportImage("env/base:1", root.path());
  ASSERT_TRUE(image.ok()) << image.status();
  auto from_image = [](sandbox::SandboxSpec& spec) { spec.set_image("env/base:1"); };
  const TestSandbox a = Create(from_image), b = Create(from_image);
  EXPECT_EQ(Run(a, "cat /etc/of-the-image; echo second > /etc/of-the-image").out, "first\n");
  EXPECT_EQ(Run(b, "cat /etc/of-the-image").out, "first\n");
  EXPECT_TRUE(tier_->RemoveImage("env/base:1").ok());
}

TEST_F(OwnSystemTest, WithoutAnAgentHasConsoleScreenAndKeyboardOnly) {
  const TestSandbox box = Boot();
  for (const absl::Status& status :
       {tier_->Reserve(box.ref()).status(), tier_->MakeDir(box.ref(), "/x"),
        tier_->ReadFile(box.ref(), "/x", [](std::string_view) { return absl::OkStatus(); })}) {
    EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("no reprise-agent has answered"));
  }
  ASSERT_THAT(WaitForConsole(box, "Xresh\r\n"), HasSubstr("fresh\r\nXresh\r\n"));
  const std::string before = Picture(box);
  ASSERT_EQ(Send(box, [](auto* event) { event->set_text("Hi, there!"); }), absl::OkStatus());
  EXPECT_THAT(WaitForConsole(box, "there!"), HasSubstr("Xresh\r\nHi, there!"));
  ASSERT_EQ(Send(box, [](auto* event) { event->set_keys("shift-k"); }), absl::OkStatus());
  EXPECT_THAT(WaitForConsole(box, "!K"), HasSubstr("there!K"));
  EXPECT_NE(Picture(box), before) << "what was typed is on the screen";
  EXPECT_EQ(Send(box,
                 [](auto* event) {
                   event->mutable_move()->set_x(100);
                   event->mutable_move()->set_y(32767);
                 }),
            absl::OkStatus());
  EXPECT_EQ(Send(box,
                 [](auto* event) {
                   event->mutable_button()->set_name("left");
                   event->mutable_button()->set_down(true);
                 }),
            absl::OkStatus());
  EXPECT_EQ(Send(box, [](auto* event) { event->mutable_power(); }), absl::OkStatus());
  EXPECT_FALSE(Send(box, [](auto* event) { event->set_keys("no_such_key"); }).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(Send(box, [](auto* event) { event->set_text("\x7f"); })));
  EXPECT_THAT(ConsoleOf(box), HasSubstr("!K")) << "the machine is as it was";
}

TEST_F(OwnSystemTest, WritesToADiskOfItsOwn) {
  const std::string before = StoredDigest();
  const TestSandbox a = Boot();
  EXPECT_THAT(WaitForConsole(a, "Xresh\r\n"), HasSubstr("\r\nfresh\r\nXresh\r\n"));
  const TestSandbox b = Boot();
  EXPECT_THAT(WaitForConsole(b, "Xresh\r\n"), HasSubstr("\r\nfresh\r\nXresh\r\n"))
      << "it saw what another sandbox wrote";
  EXPECT_EQ(StoredDigest(), before);
  // Less than an empty disk takes: the first write is an error of the guest's disk.
  const TestSandbox full = Boot([](auto& spec) { spec.mutable_limits()->set_disk_bytes(4096); });
  EXPECT_THAT(WaitForConsole(full, "fresh\r\nfresh\r\n"), HasSubstr("fresh\r\nfresh\r\n"));
}

TEST_F(FullvmTest, ALinuxThatTakesTheAgentFromItsSeedHasAllVerbs) {
  const base::ScratchDir disks("reprise-vm-disks");
  const std::string disk = disks.path() + "/linux.img";
  if (absl::Status made = MakeLinuxDisk(disk); !made.ok()) GTEST_SKIP() << made;
  ASSERT_TRUE(tier_->ImportImage("os/linux:1", disk).ok());
  const TestSandbox box = Create([](auto& spec) { spec.set_image("os/linux:1"); });
  EXPECT_TRUE(absl::IsUnimplemented(tier_->Reserve(box.ref()).status())) << "it only boots yet";
  ASSERT_FALSE(WaitForConsole(box, "a Linux of its own").empty()) << ConsoleOf(box);
  // Its console ends before its agent is there.
  absl::Status there = tier_->Reserve(box.ref()).status();
  for (const absl::Time deadline = absl::Now() + absl::Minutes(1);
       !there.ok() && absl::Now() < deadline; there = tier_->Reserve(box.ref()).status()) {
    absl::SleepFor(absl::Milliseconds(20));
  }
  ASSERT_EQ(there, absl::OkStatus()) << ConsoleOf(box);
  const Done done = Run(box, "hostname; id -u; echo kept > file; pwd; exit 7");
  EXPECT_EQ(done.result.exit_code(), 7) << done.result.ShortDebugString();
  EXPECT_EQ(done.out, "test-box-0\n0\n/work\n");
  std::string content;
  EXPECT_EQ(tier_->ReadFile(box.ref(), "/work/file",
                            [&](std::string_view data) {
                              content += data;
                              return absl::OkStatus();
                            }),
            absl::OkStatus());
  EXPECT_EQ(content, "kept\n");
  // A call outlives the daemon here too, over a pause.
  const sandbox::ExecuteRequest request =
      Shell(box, "echo up; while [ ! -e go ]; do sleep 0.1; done");
  Running running = Start(box, request);
  ASSERT_NE(running.call, nullptr);
  EXPECT_TRUE(running.recording->WaitForText("up\n"));
  running.call.reset();
  ASSERT_EQ(tier_->PauseSandbox(box.ref()), absl::OkStatus());
  Restart();
  ASSERT_EQ(tier_->RecoverSandbox(box.ref()), absl::OkStatus());
  ASSERT_EQ(tier_->ResumeSandbox(box.ref()), absl::OkStatus());
  Running again;
  std::unique_ptr<CallSink> sink = again.recording->Sink();
  Attachment attachment =
      tier_->Reattach(box.ref(), box.placement, request.call_id(), {0, 0}, sink);
  ASSERT_EQ(attachment.state, AttachState::kAttached) << attachment.reason;
  Run(box, "touch go");
  EXPECT_EQ(again.recording->WaitForEnd().outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_EQ(again.recording->out(), "up\n");
}

TEST_F(OwnSystemTest, PausesResumesAndOutlivesTheDaemon) {
  const TestSandbox box = Boot();
  ASSERT_FALSE(WaitForConsole(box, "Xresh").empty());
  ASSERT_EQ(tier_->PauseSandbox(box.ref()), absl::OkStatus());
  EXPECT_FALSE(Picture(box).empty()) << "a paused machine still has its screen";
  Restart();
  ASSERT_EQ(tier_->RecoverSandbox(box.ref()), absl::OkStatus());
  EXPECT_EQ(microvm::BoxState(BoxOf(StateDir(), box))->paused, 1);
  ASSERT_EQ(tier_->ResumeSandbox(box.ref()), absl::OkStatus());
  tier_->RecoveryDone();
  ASSERT_EQ(tier_->RecoverSandbox(box.ref()), absl::OkStatus());
  ASSERT_EQ(Send(box, [](auto* event) { event->set_text("still here"); }), absl::OkStatus());
  EXPECT_THAT(WaitForConsole(box, "still here"), HasSubstr("a system of its own"))
      << "its console is whole, over the death of the daemon";
}

TEST_F(OwnSystemTest, StopsWithoutATraceAndTellsAMachineThatEnded) {
  const TestSandbox stopped = Boot(), killed = Boot(), stranger = Boot();
  const pid_t machine = MachineOf(StateDir(), stopped);
  ASSERT_EQ(tier_->StopSandbox(stopped.ref()), absl::OkStatus());
  EXPECT_NE(kill(machine, 0), 0);
  EXPECT_FALSE(std::filesystem::exists(BoxOf(StateDir(), stopped)));
  ASSERT_EQ(kill(MachineOf(StateDir(), killed), SIGKILL), 0);
  absl::Status status = tier_->RecoverSandbox(killed.ref());
  // Until its supervisor has seen it.
  while (status.ok() || absl::IsUnavailable(status)) status = tier_->RecoverSandbox(killed.ref());
  EXPECT_THAT(std::string(status.message()), HasSubstr("ended by signal 9"));
  EXPECT_FALSE(tier_->Screenshot(killed.ref()).ok());
  const pid_t forgotten = MachineOf(StateDir(), stranger);
  Restart();
  tier_->RecoveryDone();
  EXPECT_NE(kill(forgotten, 0), 0);
  EXPECT_FALSE(std::filesystem::exists(BoxOf(StateDir(), stranger)));
}

}  // namespace
}  // namespace reprise::sandboxd
