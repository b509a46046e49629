// Snapshots of microVMs: what a copy has of the machine that it was taken of, what it must not
// have, what they cost, and that they outlive everything but themselves.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "base/clock.h"
#include "sandboxd/microvm/box.h"
#include "tests/integration/microvm_support.h"

namespace reprise::sandboxd {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

namespace fs = std::filesystem;

class MachineSnapshotTest : public MicrovmTest {
 protected:
  void TearDown() override {
    MicrovmTest::TearDown();
    if (tier_ == nullptr) return;
    for (const std::string& name : taken_) (void)tier_->RemoveImage(name);
  }
  TestSandbox From(const std::string& image) {
    return Create([&](sandbox::SandboxSpec& spec) { spec.set_image(image); });
  }
  SnapshotImage Take(const TestSandbox& box, const std::string& name) {
    taken_.push_back(name);
    absl::StatusOr<SnapshotImage> made = tier_->SnapshotSandbox(box.ref(), name);
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? *std::move(made) : SnapshotImage();
  }
  static std::string BoxOf(const TestSandbox& box) {
    return fmt::format("{}/microvm/boxes/{}", StateDir(), box.placement);
  }
  static std::string Store(const std::string& part) {
    return fmt::format("{}/microvm/snapshots/{}", StateDir(), part);
  }
  // The one file of this name that the store has below `part`.
  static std::string FileOf(const std::string& part, const std::string& name) {
    std::string found;
    for (const auto& entry : fs::directory_iterator(Store(part))) {
      EXPECT_EQ(found, "") << "there are several";
      found = entry.path() / name;
    }
    return found;
  }

  std::vector<std::string> taken_;
};

TEST_F(MachineSnapshotTest, CopiesFilesAndProcesses) {
  const TestSandbox box = Create();
  ASSERT_EQ(
      Run(box,
          "echo one > /work/a; ln /work/a /work/b; mkfifo /work/in /work/out; rm -rf /etc/hosts;"
          "(while read line < /work/in; do echo \"$line and $KEPT\" > /work/out; done)"
          " >/dev/null 2>&1 & sleep 0.2; echo done")
          .out,
      "done\n");
  const SnapshotImage made = Take(box, "kept");
  EXPECT_EQ(made.image.name(), "kept");
  EXPECT_THAT(made.image.digest(), HasSubstr("sha256:"));
  EXPECT_EQ(tier_->ListImages().value().size(), 1u);
  // The one that it was taken of goes on, and what it does is its own.
  EXPECT_EQ(Run(box, "echo two >> /work/b; cat /work/a").out, "one\ntwo\n");
  const std::string look =
      "cat /etc/machine-id; hostname; head -c 16 /dev/urandom | od -An -tx1; date +%s";
  const std::string there = Run(box, look).out;
  const TestSandbox copy = From("kept"), other = From("kept");
  for (const TestSandbox& each : {copy, other}) {
    EXPECT_EQ(
        Run(each, "cat /work/b; ls /etc/hosts 2>/dev/null; echo mine >> /work/a; cat /work/b").out,
        "one\none\nmine\n");
    EXPECT_EQ(Run(each, "echo hello > /work/in; cat /work/out").out, "hello and \n")
        << "a process of the machine goes on in its copy";
  }
  EXPECT_NE(Run(copy, look).out, Run(other, look).out);
  EXPECT_NE(Run(copy, "cat /etc/machine-id").out, Run(other, "cat /etc/machine-id").out);
  EXPECT_NE(Run(copy, "hostname").out, Run(box, "hostname").out);
  EXPECT_NE(Run(copy, "cat /etc/machine-id").out, there.substr(0, there.find('\n') + 1));
  EXPECT_NEAR(std::stod(Run(copy, "date +%s").out), static_cast<double>(time(nullptr)), 5.0);
}

TEST_F(MachineSnapshotTest, IsTakenWhileACallRuns) {
  const TestSandbox box = Create();
  const sandbox::ExecuteRequest request =
      Shell(box, "i=0; while [ ! -e /work/stop ]; do i=$((i+1)); echo $i; done; echo over");
  Running running = Start(box, request);
  ASSERT_NE(running.call, nullptr);
  running.recording->AcknowledgeTo(running.call.get());
  EXPECT_TRUE(running.recording->WaitForText("\n20\n"));
  Take(box, "busy");
  Run(box, "touch /work/stop");
  EXPECT_EQ(running.recording->WaitForEnd().outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_FALSE(running.recording->gap) << "the port lost or repeated bytes";
  EXPECT_THAT(running.recording->out(), HasSubstr("\nover\n"));
  // In the copy the call is of nobody: it was ended, and its id is free.
  const TestSandbox copy = From("busy");
  EXPECT_EQ(Run(copy, "ps | grep -c '[w]hile \\[ ! -e'").out, "0\n");
  sandbox::ExecuteRequest again = Shell(copy, "echo again");
  again.set_call_id(request.call_id());
  EXPECT_EQ(Run(copy, again).out, "again\n");
}

TEST_F(MachineSnapshotTest, OutlivesItsSandboxItsImageAndTheDaemon) {
  const base::ScratchDir root("reprise-microvm-root");
  MakeBusyboxRoot(root.path());
  ASSERT_TRUE(base::WriteFileAtomic(root.path() + "/etc/of-the-image", "image\n").ok());
  ASSERT_TRUE(tier_->ImportImage("env/base:1", root.path()).ok());
  const TestSandbox box = From("env/base:1");
  Run(box, "echo kept > /work/file");
  Take(box, "env/kept:1");
  ASSERT_TRUE(tier_->StopSandbox(box.ref()).ok());
  ASSERT_TRUE(tier_->RemoveImage("env/base:1").ok());
  Restart();
  tier_->RecoveryDone();
  const TestSandbox copy = From("env/kept:1");
  EXPECT_EQ(Run(copy, "cat /work/file /etc/of-the-image").out, "kept\nimage\n");
  // One more, of a machine whose template nobody booted.
  Run(copy, "echo more >> /work/file");
  const SnapshotImage second = Take(copy, "env/kept:2");
  EXPECT_EQ(Run(From("env/kept:2"), "cat /work/file").out, "kept\nmore\n");
  EXPECT_EQ(second.stored_bytes, second.image.size_bytes()) << "the template is there already";
  ASSERT_TRUE(tier_->RemoveImage("env/kept:1").ok());
  EXPECT_EQ(Run(From("env/kept:2"), "cat /work/file").out, "kept\nmore\n");
  ASSERT_TRUE(tier_->RemoveImage("env/kept:2").ok());
  EXPECT_TRUE(absl::IsNotFound(tier_->RemoveImage("env/kept:2")));
  for (const char* const part : {"names", "machines", "templates"})
    EXPECT_TRUE(fs::is_empty(Store(part))) << part;
}

TEST_F(MachineSnapshotTest, CostsWhatChanged) {
  const TestSandbox box = Create();
  Run(box, "true");
  const SnapshotImage first = Take(box, "first"), little = Take(box, "little");
  constexpr uint64_t kWritten = 24 << 20;
  ASSERT_EQ(Run(box, "head -c 25165824 /dev/urandom > /work/noise; echo $?").out, "0\n");
  const base::Stopwatch watch;
  const SnapshotImage much = Take(box, "much");
  const double took_ms = watch.ElapsedMicros() / 1e3;
  const auto memory_bytes = (240ull << 20);  // what such a machine has at least
  EXPECT_LT(little.stored_bytes, memory_bytes / 8);
  EXPECT_GE(much.stored_bytes, kWritten) << "noise does not get smaller";
  EXPECT_LT(much.stored_bytes, little.stored_bytes + 2 * kWritten);
  fmt::print(
      "first snapshot {} KiB with its template, next {} KiB, with 24 MiB of noise {} KiB in "
      "{:.0f} ms\n",
      first.stored_bytes >> 10, little.stored_bytes >> 10, much.stored_bytes >> 10, took_ms);
}

TEST_F(MachineSnapshotTest, OfAPausedSandboxLeavesItPaused) {
  const TestSandbox box = Create();
  Run(box, "echo kept > /work/file");
  ASSERT_TRUE(tier_->PauseSandbox(box.ref()).ok());
  const absl::StatusOr<microvm::VmState> paused = microvm::BoxState(BoxOf(box));
  ASSERT_TRUE(paused.ok()) << paused.status();
  EXPECT_EQ(paused->vmm_pid, static_cast<uint64_t>(-1)) << "its memory is given back";
  Take(box, "still");
  EXPECT_EQ(microvm::BoxState(BoxOf(box))->paused, 1);
  EXPECT_EQ(Run(From("still"), "cat /work/file").out, "kept\n");
  ASSERT_EQ(tier_->ResumeSandbox(box.ref()), absl::OkStatus());
  EXPECT_EQ(Run(box, "cat /work/file; echo more > /work/file; cat /work/file").out, "kept\nmore\n");
  EXPECT_FALSE(fs::exists(BoxOf(box) + "/suspended"));
}

TEST_F(MachineSnapshotTest, RefusesWhatItCannotBe) {
  const TestSandbox box = Create();
  Take(box, "env/one:1");
  auto create = [&](const std::function<void(sandbox::SandboxSpec&)>& change) {
    sandbox::SandboxSpec spec;
    Fill(spec);
    spec.set_image("env/one:1");
    change(spec);
    return std::string(tier_->CreateSandbox("x", spec, nullptr).status().message());
  };
  EXPECT_THAT(create([](auto& spec) { spec.mutable_limits()->set_memory_bytes(256 << 20); }),
              HasSubstr("limits.memory_bytes"));
  EXPECT_THAT(create([](auto& spec) { spec.set_user("1000"); }), HasSubstr("spec.user"));
  EXPECT_THAT(create([](auto& spec) { spec.set_working_dir("/tmp"); }), HasSubstr("working_dir"));
}

// Whatever byte of it is changed: an error that names it, never a machine with other memory.
TEST_F(MachineSnapshotTest, TellsADamagedOne) {
  const TestSandbox box = Create();
  Take(box, "hurt");
  ASSERT_TRUE(tier_->StopSandbox(box.ref()).ok());
  for (const char* const part : {"memory", "devices"}) {
    const std::string path = FileOf("machines", part);
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    const auto at = static_cast<std::streamoff>(fs::file_size(path) / 2);
    file.seekg(at);
    const char was = static_cast<char>(file.get());
    auto put = [&](char byte) {
      file.seekp(at);
      file.put(byte);
      file.flush();
    };
    put(static_cast<char>(was ^ 1));
    sandbox::SandboxSpec spec;
    Fill(spec);
    spec.set_image("hurt");
    const absl::Status status = tier_->CreateSandbox("x", spec, nullptr).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr("damaged")) << part;
    put(was);
  }
  EXPECT_EQ(Run(From("hurt"), "echo fine").out, "fine\n");
}

// A daemon that died between two steps leaves nothing that a name does not have.
TEST_F(MachineSnapshotTest, LeavesNothingHalfMade) {
  const TestSandbox box = Create();
  Take(box, "whole");
  fs::create_directories(Store("machines/half"));
  fs::create_directories(Store("templates/half"));
  std::ofstream(Store("machines/half/memory")) << "x";
  fs::create_directories(BoxOf(box) + "/snapshot-left");
  Restart();
  ASSERT_TRUE(tier_->RecoverSandbox(box.ref()).ok());
  tier_->RecoveryDone();
  EXPECT_FALSE(fs::exists(Store("machines/half")));
  EXPECT_FALSE(fs::exists(Store("templates/half")));
  EXPECT_FALSE(fs::exists(BoxOf(box) + "/snapshot-left"));
  EXPECT_EQ(Run(From("whole"), "echo fine").out, "fine\n");
}

}  // namespace
}  // namespace reprise::sandboxd
