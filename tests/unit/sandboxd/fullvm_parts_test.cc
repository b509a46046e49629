// The parts of the vm tier that read what a user or a caller brings: disks that would lead to other
// files of the host, input that cannot be, and the seed that a guest reads.
#include <archive.h>
#include <archive_entry.h>
#include <endian.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <string.h>

#include <filesystem>
#include <map>

#include "base/fd.h"
#include "sandboxd/fullvm/disk_images.h"
#include "sandboxd/fullvm/input.h"
#include "sandboxd/fullvm/qcow2.h"
#include "sandboxd/fullvm/seed.h"
#include "sandboxd/image/disk_source.h"
#include "sandboxd/image/image_source.h"

namespace reprise::sandboxd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kGiB = 1ull << 30;

class DiskTest : public ::testing::Test {
 protected:
  // An empty QCOW2 file with some of its bytes changed.
  std::string Patched(size_t at, const std::string& bytes) {
    const std::string path = fmt::format("{}/{}.qcow2", scratch_.path(), ++files_);
    EXPECT_TRUE(MakeEmptyQcow2(path, kGiB).ok());
    std::string content = base::ReadFile(path).value_or("");
    content.replace(at, bytes.size(), bytes);
    EXPECT_TRUE(base::WriteFileAtomic(path, content).ok());
    return path;
  }
  static std::string Big64(uint64_t value) {
    value = htobe64(value);
    return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  static std::string Big32(uint32_t value) {
    value = htobe32(value);
    return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
  }

  const base::ScratchDir scratch_{"reprise-disk-test"};
  int files_ = 0;
};

TEST_F(DiskTest, TellsDisksFromImages) {
  auto file = [&](const std::string& content) {
    const std::string path = fmt::format("{}/{}", scratch_.path(), ++files_);
    EXPECT_TRUE(base::WriteFileAtomic(path, content).ok());
    return path;
  };
  std::string boot(1024, '\0');
  boot[510] = '\x55', boot[511] = '\xaa';
  EXPECT_TRUE(IsDiskFile(file(boot)));
  EXPECT_TRUE(IsDiskFile(Patched(0, "QFI\xfb")));
  EXPECT_TRUE(IsDiskFile(file(std::string(512, '\0') + "EFI PART" + std::string(512, '\0'))));
  EXPECT_FALSE(IsDiskFile(file(std::string(1024, '\0'))));
  EXPECT_FALSE(IsDiskFile(file("\x1f\x8b" + boot.substr(2)))) << "a compressed archive";
  EXPECT_FALSE(IsDiskFile(scratch_.path()));
  EXPECT_FALSE(IsDiskFile("/nowhere"));
  // The other tiers say what it is.
  const absl::Status refused = OpenImageSource(file(boot), scratch_.path()).status();
  EXPECT_TRUE(absl::IsUnimplemented(refused)) << refused;
}

TEST_F(DiskTest, TakesAWholeDisk) {
  EXPECT_EQ(CheckQcow2(Patched(0, ""), "disk").value_or(0), kGiB);
  const std::string path = scratch_.path() + "/again";
  ASSERT_TRUE(MakeEmptyQcow2(path, 1 << 20).ok());
  EXPECT_FALSE(MakeEmptyQcow2(path, 1 << 20).ok()) << "it would lose what a guest wrote";
  EXPECT_FALSE(MakeEmptyQcow2(scratch_.path() + "/none", 0).ok());
  EXPECT_FALSE(MakeEmptyQcow2(scratch_.path() + "/odd", 1000).ok());
}

TEST_F(DiskTest, RefusesWhatLeadsToOtherFilesOfTheHost) {
  auto images = DiskImages::Open(scratch_.path() + "/store");
  ASSERT_TRUE(images.ok()) << images.status();
  // Where the header has them: backing file at 8, encryption at 32, features at 72, extensions
  // after it at 104.
  const std::string backing = Patched(8, Big64(200) + Big32(11));
  const std::string data_feature = Patched(72, Big64(4));
  const std::string data_name =
      Patched(104, Big32(0x44415441) + Big32(11) + "/etc/passwd" + std::string(5, '\0'));
  for (const std::string& path : {backing, data_feature, data_name}) {
    const absl::Status refused = (*images)->Import("os/hostile", path).status();
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("file of the host"));
  }
  const std::map<std::string, std::string> others = {
      {Patched(32, Big32(1)), "encrypted"},
      {Patched(72, Big64(1 << 20)), "features"},
      {Patched(72, Big64(2)), "marked corrupt"},
      {Patched(24, Big64(kDiskVirtualBytesMax + 512)), "bytes"},
      {Patched(20, Big32(40)), "clusters"},
      {Patched(4, Big32(9)), "version"},
      {Patched(100, Big32(1 << 30)), "a header of"}};
  for (const auto& [path, why] : others) {
    const absl::Status refused = (*images)->Import("os/hostile", path).status();
    EXPECT_THAT(std::string(refused.message()), HasSubstr(why));
  }
  EXPECT_TRUE((*images)->List()->empty());
  EXPECT_TRUE(std::filesystem::is_empty(scratch_.path() + "/store/files"));
}

TEST_F(DiskTest, KeepsListsAndRemovesDisks) {
  const std::string dir = scratch_.path() + "/store";
  auto images = DiskImages::Open(dir);
  ASSERT_TRUE(images.ok()) << images.status();
  const std::string source = Patched(0, "");
  ASSERT_TRUE((*images)->Import("os/a:1", source).ok());
  ASSERT_TRUE((*images)->Import("os/b:1", source).ok());
  auto found = (*images)->Find("os/a:1");
  ASSERT_TRUE(found.ok() && found->has_value()) << found.status();
  EXPECT_EQ((*found)->format, "qcow2");
  EXPECT_EQ((*found)->virtual_bytes, kGiB);
  EXPECT_EQ(base::ReadFile((*found)->path).value_or(""), base::ReadFile(source).value_or("-"));
  EXPECT_FALSE((*images)->Find("os/c:1")->has_value());
  EXPECT_EQ((*images)->List()->size(), 2u);
  ASSERT_TRUE((*images)->Remove("os/a:1").ok());
  EXPECT_TRUE(absl::IsNotFound((*images)->Remove("os/a:1")));
  // A copy that was cut short goes with the next daemon, a named one stays.
  ASSERT_TRUE(base::WriteFileAtomic(dir + "/files/half-0123", "x").ok());
  images = DiskImages::Open(dir);
  EXPECT_FALSE(std::filesystem::exists(dir + "/files/half-0123"));
  EXPECT_TRUE((*images)->Find("os/b:1")->has_value());
}

TEST(InputTest, TurnsTextAndKeysIntoActions) {
  sandbox::SendInputRequest request;
  request.add_events()->set_text("aB/\n");
  request.add_events()->set_keys("ctrl-alt-delete");
  const absl::StatusOr<std::vector<microvm::Input>> inputs = ToInputs(request);
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  ASSERT_EQ(inputs->size(), 5u);
  EXPECT_THAT((*inputs)[0].names, ElementsAre("a"));
  EXPECT_THAT((*inputs)[1].names, ElementsAre("shift", "b"));
  EXPECT_THAT((*inputs)[2].names, ElementsAre("slash"));
  EXPECT_THAT((*inputs)[3].names, ElementsAre("ret"));
  EXPECT_THAT((*inputs)[4].names, ElementsAre("ctrl", "alt", "delete"));
}

TEST(InputTest, RefusesWhatCannotBe) {
  auto refused = [](const std::function<void(sandbox::InputEvent*)>& change) {
    sandbox::SendInputRequest request;
    change(request.add_events());
    return std::string(ToInputs(request).status().message());
  };
  EXPECT_THAT(refused([](auto*) {}), HasSubstr("an event without"));
  EXPECT_THAT(refused([](auto* event) { event->set_keys("ctrl--x"); }), HasSubstr("keys:"));
  EXPECT_THAT(refused([](auto* event) { event->set_keys("a\"}"); }), HasSubstr("keys:"));
  EXPECT_THAT(refused([](auto* event) { event->set_text("\xc3\xa9"); }), HasSubstr("0xc3"));
  EXPECT_THAT(refused([](auto* event) { event->set_text(std::string(2000, 'a')); }),
              HasSubstr("more than"));
  EXPECT_THAT(refused([](auto* event) { event->mutable_move()->set_x(40000); }),
              HasSubstr("move:"));
  EXPECT_THAT(refused([](auto* event) { event->mutable_button()->set_name("third"); }),
              HasSubstr("button:"));
  EXPECT_THAT(std::string(ToInputs({}).status().message()), HasSubstr("nothing to send"));
}

TEST(SeedTest, HoldsWhatCloudInitReads) {
  const base::ScratchDir scratch("reprise-seed-test");
  const std::string guest = scratch.path() + "/guest", agent = scratch.path() + "/agent";
  ASSERT_TRUE(base::WriteFileAtomic(guest, "the guest").ok());
  ASSERT_TRUE(base::WriteFileAtomic(agent, std::string(100'000, 'a')).ok());
  const std::string path = scratch.path() + "/seed.iso";
  ASSERT_EQ(WriteSeed(path, {"0123", "box-7", guest, agent}), absl::OkStatus());
  const std::string iso = base::ReadFile(path).value_or("");
  // The label, where ISO 9660 has it: 40 bytes into the first descriptor.
  ASSERT_GT(iso.size(), 33'000u);
  EXPECT_EQ(iso.substr(32'768 + 40, 32), fmt::format("{:<32}", "cidata"));
  std::map<std::string, std::string> files;
  archive* const reader = archive_read_new();
  archive_read_support_format_iso9660(reader);
  ASSERT_EQ(archive_read_open_filename(reader, path.c_str(), 10240), ARCHIVE_OK);
  for (archive_entry* entry = nullptr; archive_read_next_header(reader, &entry) == ARCHIVE_OK;) {
    if (archive_entry_filetype(entry) != AE_IFREG) continue;
    std::string content(static_cast<size_t>(archive_entry_size(entry)), '\0');
    EXPECT_EQ(archive_read_data(reader, content.data(), content.size()),
              static_cast<la_ssize_t>(content.size()));
    files[archive_entry_pathname(entry)] = content;
  }
  archive_read_free(reader);
  EXPECT_EQ(files["meta-data"], "instance-id: 0123\nlocal-hostname: box-7\n");
  EXPECT_EQ(files["user-data"].substr(0, 14), "#cloud-config\n");
  EXPECT_EQ(files["reprise-guest"], "the guest");
  EXPECT_EQ(files["reprise-agent"].size(), 100'000u);
}

}  // namespace
}  // namespace reprise::sandboxd
