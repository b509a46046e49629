// The Firecracker driver against a server that checks every request as the API's description has
// it: booting, a template, clones, snapshots, and the guest's stream over all of them.
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "base/clock.h"
#include "base/fd.h"
#include "sandboxd/microvm/firecracker_api.h"
#include "sandboxd/microvm/vmm.h"

namespace reprise::sandboxd::microvm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kWaitUs = 30'000'000;
constexpr uint64_t kMemoryMib = 1;
constexpr uint64_t kFileBytesMax = 1 << 20;

class FirecrackerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (access("/usr/bin/python3", X_OK) != 0) GTEST_SKIP() << "there is no python3 here";
    ASSERT_EQ(chdir(box_.path().c_str()), 0);
    // As a supervisor has them.
    Place("ram", kMemoryMib << 20, kRamFd);
    Place("state", 0, kStateFd);
    for (const char* const name : {"kernel", "initramfs", "image"})
      ASSERT_TRUE(base::WriteFileAtomic(name, name).ok());
    config_.program = REPRISE_SOURCE_DIR "/tests/unit/sandboxd/recording_firecracker.py";
    config_.driver = static_cast<uint8_t>(Driver::kFirecracker);
    config_.kernel = "kernel";
    config_.initramfs = "initramfs";
    config_.image = "image";
    config_.memory_mib = kMemoryMib;
  }
  void TearDown() override { ASSERT_EQ(chdir("/"), 0); }

  static void Place(const char* name, uint64_t bytes, int fd) {
    base::UniqueFd made(memfd_create(name, MFD_CLOEXEC));
    ASSERT_EQ(ftruncate(made.get(), static_cast<off_t>(bytes)), 0);
    // It may have that number already.
    const base::UniqueFd aside(fcntl(made.get(), F_DUPFD_CLOEXEC, 2 * kStateFd));
    ASSERT_EQ(dup3(aside.get(), fd, O_CLOEXEC), fd);
    if (made.get() == fd) (void)made.Release();
  }
  std::unique_ptr<Vmm> Launch(Mode mode) {
    config_.mode = static_cast<uint8_t>(mode);
    std::unique_ptr<Vmm> vmm = MakeFirecracker();
    const absl::Status launched = vmm->Launch(config_);
    EXPECT_TRUE(launched.ok()) << launched;
    port_ = vmm->TakePort();
    return vmm;
  }
  // What comes back for `text` from the guest's stream.
  std::string Echo(Vmm& vmm, const std::string& text) {
    EXPECT_EQ(write(port_.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    std::string back;
    const int64_t deadline = base::MonotonicMicros() + kWaitUs;
    while (back.size() < text.size() && base::MonotonicMicros() < deadline) {
      std::vector<pollfd> fds = {{port_.get(), POLLIN, 0}};
      vmm.AddPollFds(&fds);
      poll(fds.data(), fds.size(), 1000);
      vmm.Attend();
      char buffer[256];
      const ssize_t count = read(port_.get(), buffer, sizeof(buffer));
      if (count == 0) return back + " and the end";
      if (count > 0) back.append(buffer, static_cast<size_t>(count));
    }
    return back;
  }
  static std::string Requests() {
    return base::ReadFile("vmm/requests", kFileBytesMax).value_or("");
  }

  const base::ScratchDir box_{"reprise-firecracker"};
  VmConfig config_;
  base::UniqueFd port_;
};

TEST_F(FirecrackerTest, BootsWhatItIsTold) {
  const auto vmm = Launch(Mode::kBoot);
  EXPECT_EQ(Echo(*vmm, "hello"), "hello") << "asked again until the guest listened";
  const std::string seen = Requests();
  EXPECT_THAT(seen, HasSubstr(R"("PUT", "/machine-config", {"mem_size_mib": 1, "vcpu_count": 1})"));
  EXPECT_THAT(seen, HasSubstr(R"("uds_path": "vsock.sock")"));
  EXPECT_THAT(seen, HasSubstr(R"("is_read_only": true, "is_root_device": false)"));
  size_t at = 0;
  for (const char* const path :
       {"/machine-config", "/boot-source", "/drives/image", "/vsock", "/actions"}) {
    const size_t found = seen.find(fmt::format("\"PUT\", \"{}\"", path));
    ASSERT_NE(found, std::string::npos) << path;
    EXPECT_GE(found, at) << path << " is out of order";
    at = found;
  }
  EXPECT_THAT(seen, Not(HasSubstr("\"]\n"))) << "something was refused";
  EXPECT_TRUE(vmm->Pause().ok());
  EXPECT_TRUE(vmm->Resume().ok());
  EXPECT_EQ(Echo(*vmm, "again"), "again");
  const pid_t pid = vmm->pid();
  vmm->End();
  EXPECT_NE(kill(pid, 0), 0);
}

TEST_F(FirecrackerTest, ItsTemplatesAndSnapshotsShareOneMemory) {
  {
    const auto made = Launch(Mode::kTemplate);
    EXPECT_EQ(Echo(*made, "hello"), "hello");
    const absl::Status saved = made->Save(kStateFd);
    ASSERT_TRUE(saved.ok()) << saved;
    EXPECT_THAT(Requests(), AllOf(HasSubstr(R"("PATCH", "/vm", {"state": "Paused"})"),
                                  HasSubstr(R"("snapshot_type": "Full")"),
                                  HasSubstr(R"("mem_file_path": "/proc/self/fd/4")")));
  }
  std::filesystem::create_directory("snapshot");
  {
    const auto clone = Launch(Mode::kClone);
    const absl::Status loaded = clone->Load(kStateFd);
    ASSERT_TRUE(loaded.ok()) << loaded;
    ASSERT_TRUE(clone->Resume().ok());
    EXPECT_EQ(Echo(*clone, "hello"), "hello");
    EXPECT_THAT(Requests(),
                HasSubstr(R"("backend_path": "/proc/self/fd/4", "backend_type": "File")"));
    ASSERT_TRUE(clone->Pause().ok());
    const absl::Status saved = clone->SaveTo("snapshot");
    ASSERT_TRUE(saved.ok()) << saved;
    ASSERT_TRUE(clone->Resume().ok());
    EXPECT_EQ(Echo(*clone, "goes on"), "goes on") << "over another connection";
    EXPECT_FALSE(std::filesystem::exists("vmm/dirty"));
  }
  // What the clone wrote (the recording's page 3), and nothing of the template.
  EXPECT_LT(std::filesystem::file_size("snapshot/memory"), 8192u);
  const auto copy = Launch(Mode::kRestore);
  const absl::Status restored = copy->LoadFrom("snapshot");
  ASSERT_TRUE(restored.ok()) << restored;
  ASSERT_TRUE(copy->Resume().ok());
  EXPECT_EQ(Echo(*copy, "hello"), "hello");
}

TEST_F(FirecrackerTest, SaysWhyItCannot) {
  const auto vmm = Launch(Mode::kBoot);
  std::filesystem::create_directory("snapshot");
  const absl::Status status = vmm->SaveTo("snapshot");
  EXPECT_FALSE(status.ok());
  const FirecrackerApi api("vmm/api.sock");
  EXPECT_EQ(api.Put("/nothing", "{}", 10'000).message(),
            "Firecracker, PUT /nothing: 400 (no such path /nothing)");
  EXPECT_TRUE(absl::IsUnavailable(FirecrackerApi("vmm/none").Put("/vm", "{}", 10)));
  config_.program = "/bin/false";
  config_.mode = static_cast<uint8_t>(Mode::kBoot);
  const absl::Status none = MakeFirecracker()->Launch(config_);
  EXPECT_THAT(std::string(none.message()), HasSubstr("/bin/false did not start"));
}

}  // namespace
}  // namespace reprise::sandboxd::microvm
