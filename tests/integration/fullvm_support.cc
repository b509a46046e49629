#include "tests/integration/fullvm_support.h"

#include <archive.h>
#include <archive_entry.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>

#include "absl/time/clock.h"

namespace reprise::sandboxd {
namespace {

// Of a test's sandbox: enough for busybox, little to save and map.
constexpr uint64_t kMemoryBytes = 128 << 20;
constexpr uint64_t kStopGraceMs = 200;
constexpr size_t kDiskBytes = 1 << 20, kSectorBytes = 512;
constexpr absl::Duration kConsoleWaitMax = absl::Seconds(60);

constexpr size_t kLinuxDiskBytes = 64 << 20;
constexpr char kLoaderConfig[] =
    "SERIAL 0 115200\nPROMPT 0\nDEFAULT linux\nLABEL linux\n KERNEL vmlinuz\n"
    " APPEND initrd=initrd.img console=tty0 console=ttyS0 panic=-1 cryptomgr.notests "
    "rdinit=/init\n";
constexpr const char* kLinuxModules[] = {
    "virtio_ring",           "virtio",     "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev", "virtio_pci", "virtio_blk",
    "virtio_console",        "cdrom",      "isofs"};
constexpr char kLinuxInit[] = R"(#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
until [ -e /dev/vdb ]; do sleep 0.1; done
mount -t iso9660 -o ro /dev/vdb /seed
cp /seed/reprise-guest /seed/reprise-agent /bin/
chmod 755 /bin/reprise-guest /bin/reprise-agent
hostname $(sed -n 's/local-hostname: //p' /seed/meta-data)
echo a Linux of its own
setsid reprise-guest serve </dev/null >/dev/console 2>&1 &
while :; do sleep 1000; done
)";

// cpio, as the kernel unpacks it.
absl::Status WriteInitramfs(const std::string& modules, const std::string& path) {
  archive* const writer = archive_write_new();
  archive_write_set_format_cpio_newc(writer);
  bool written = archive_write_open_filename(writer, path.c_str()) == ARCHIVE_OK;
  auto add = [&](const std::string& name, unsigned type, unsigned mode,
                 const std::string& content) {
    archive_entry* const entry = archive_entry_new();
    archive_entry_set_pathname(entry, name.c_str());
    archive_entry_set_filetype(entry, type);
    archive_entry_set_perm(entry, mode);
    archive_entry_set_size(entry, static_cast<la_int64_t>(content.size()));
    written = written && archive_write_header(writer, entry) == ARCHIVE_OK &&
              archive_write_data(writer, content.data(), content.size()) ==
                  static_cast<la_ssize_t>(content.size());
    archive_entry_free(entry);
  };
  for (const char* const directory : {"bin", "dev", "etc", "modules", "proc", "seed", "sys", "tmp"})
    add(directory, AE_IFDIR, 0755, "");
  std::string order;
  for (const char* const name : kLinuxModules) {
    add(fmt::format("modules/{}.ko", name), AE_IFREG, 0600,
        base::ReadFile(fmt::format("{}/{}.ko", modules, name)).value_or(""));
    order += fmt::format("{}\n", name);
  }
  add("modules/order", AE_IFREG, 0600, order);
  add("bin/busybox", AE_IFREG, 0755, base::ReadFile("/bin/busybox").value_or(""));
  add("etc/passwd", AE_IFREG, 0644, "root:x:0:0:root:/root:/bin/sh\n");
  add("etc/group", AE_IFREG, 0644, "root:x:0:\n");
  add("init", AE_IFREG, 0755, kLinuxInit);
  written = archive_write_close(writer) == ARCHIVE_OK && written;
  archive_write_free(writer);
  return written ? absl::OkStatus() : absl::InternalError("cannot write " + path);
}

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

absl::Status MakeLinuxDisk(const std::string& path) {
  const std::string guest = std::string(REPRISE_BIN_DIR) + "/guest";
  for (const std::string& needed :
       {std::string("/usr/bin/syslinux"), std::string("/usr/bin/mcopy"),
        std::string("/usr/bin/mformat"), guest + "/vmlinuz", guest + "/modules/isofs.ko"}) {
    if (access(needed.c_str(), R_OK) != 0)
      return absl::UnavailableError(needed + " is missing: run scripts/deps");
  }
  const base::ScratchDir work("reprise-linux-disk");
  auto in_work = [&](const char* name) { return fmt::format("{}/{}", work.path(), name); };
  absl::Status made = WriteInitramfs(guest + "/modules", in_work("initrd.img"));
  if (made.ok()) made = base::WriteFileAtomic(in_work("syslinux.cfg"), kLoaderConfig);
  if (!made.ok()) return made;
  // A file system over the whole disk, whose boot sector is the loader's.
  const std::string script = fmt::format(
      "truncate -s {1} {0} && mformat -i {0} -F :: && syslinux --install {0} && "
      "mcopy -i {0} {2}/vmlinuz {3}/initrd.img {3}/syslinux.cfg ::",
      path, kLinuxDiskBytes, guest, work.path());
  return system(script.c_str()) == 0 ? absl::OkStatus()
                                     : absl::InternalError("cannot make a bootable disk");
}

}  // namespace reprise::sandboxd
