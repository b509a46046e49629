#include "tests/unit/sandboxd/image_support.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>

#include "sandboxd/image/blob.h"

namespace reprise::sandboxd {

namespace fs = std::filesystem;

void WriteText(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

std::string ReadText(const std::string& path) {
  return base::ReadFile(path).value_or("unreadable");
}

std::vector<std::string> Describe(const std::string& root) {
  std::vector<std::string> lines;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    struct stat info {};
    const std::string path = entry.path();
    EXPECT_EQ(lstat(path.c_str(), &info), 0) << path;
    std::string what;
    if (S_ISREG(info.st_mode)) what = Sha256Digest(ReadText(path));
    if (S_ISLNK(info.st_mode)) what = fs::read_symlink(path);
    char value[256];
    for (const char* name : {"user.colour", "security.capability"}) {
      const ssize_t size = lgetxattr(path.c_str(), name, value, sizeof(value));
      if (size > 0)
        what += fmt::format(" {}={}", name, Sha256Digest({value, static_cast<size_t>(size)}));
    }
    // Sizes and link counts of directories are the file system's own business.
    const bool directory = S_ISDIR(info.st_mode);
    lines.push_back(fmt::format("{} {:o} {}:{} {} {}.{} {} {}", path.substr(root.size()),
                                info.st_mode, info.st_uid, info.st_gid,
                                directory ? 0 : info.st_size, info.st_mtim.tv_sec,
                                info.st_mtim.tv_nsec, directory ? 0 : info.st_nlink, what));
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

void MakeRichTree(const std::string& root) {
  std::mt19937 random(42);
  auto noise = [&random](size_t bytes) {
    std::string text(bytes, '\0');
    for (char& byte : text) byte = static_cast<char>(random());
    return text;
  };
  for (size_t size : {0, 1, 4095, 4096, 4097, 100'000, 262'143, 262'144, 262'145, 1'000'000}) {
    WriteText(fmt::format("{}/sizes/{}", root, size), noise(size));
  }
  for (int i = 0; i < 500; ++i) {
    WriteText(fmt::format("{}/many/file-with-a-longer-name-{}", root, i), noise(i * 7));
  }
  WriteText(root + "/odd/na me\nwith \xff bytes", "odd");
  WriteText(root + "/odd/" + std::string(255, 'n'), "long");
  fs::create_symlink("sizes/1", root + "/link");
  fs::create_symlink(std::string(4000, 'l'), root + "/long-link");
  fs::create_hard_link(root + "/sizes/4097", root + "/hard");
  fs::create_hard_link(root + "/sizes/4097", root + "/many/hard");
  fs::create_directories(root + "/empty");
  WriteText(root + "/sparse", "begin");
  EXPECT_EQ(truncate((root + "/sparse").c_str(), 3 << 20), 0);
  {
    std::fstream file(root + "/sparse", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(2 << 20);
    file << "middle";
  }
  EXPECT_EQ(mkfifo((root + "/fifo").c_str(), 0620), 0);
  EXPECT_EQ(chmod((root + "/sizes/1").c_str(), 04755), 0);
  EXPECT_EQ(chmod((root + "/empty").c_str(), 01777), 0);
  if (geteuid() == 0) {
    EXPECT_EQ(lchown((root + "/link").c_str(), 70'000, 80'000), 0);
    EXPECT_EQ(chown((root + "/sizes/4096").c_str(), 1000, 70'000), 0);
  }
  // Where the scratch directory's file system has no attributes the comparison sees none on both
  // sides.
  (void)setxattr((root + "/sizes/1").c_str(), "user.colour", "blue", 4, 0);
  (void)setxattr((root + "/many").c_str(), "user.colour", std::string(200, 'g').c_str(), 200, 0);
}

ImageTest::~ImageTest() {
  for (const std::string& overlay : overlays_) umount2(overlay.c_str(), MNT_DETACH);
  if (mounts_ == nullptr) return;
  EXPECT_TRUE(mounts_->Shutdown().ok());
}

std::unique_ptr<ImageCatalog> ImageTest::OpenCatalog() {
  auto catalog = ImageCatalog::Open(options_);
  EXPECT_TRUE(catalog.ok()) << catalog.status();
  return *std::move(catalog);
}

void ImageTest::NeedsMounts() {
  if (geteuid() != 0) GTEST_SKIP() << "mounting needs root";
  if (access("/dev/fuse", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/fuse on this host";
  mounts_ = std::make_unique<ImageMounts>(
      ImageMountsOptions{options_, std::string(REPRISE_BIN_DIR) + "/reprise-imagefs"});
  WriteText(Dir("probe/file"), "probe");
  auto image = OpenCatalog()->Import("probe", Dir("probe"));
  ASSERT_TRUE(image.ok()) << image.status();
  auto mounted = mounts_->Mount(*image);
  if (absl::IsUnavailable(mounted.status())) GTEST_SKIP() << mounted.status();
  ASSERT_TRUE(mounted.ok()) << mounted.status();
}

std::string ImageTest::MountOverlay(const std::vector<std::string>& lower,
                                    const std::string& name) {
  std::string options = "index=off,lowerdir=";
  for (size_t i = 0; i < lower.size(); ++i) options += (i == 0 ? "" : ":") + lower[i];
  for (const char* part : {"upper", "work", "merged"})
    fs::create_directories(Dir(name + "/" + part));
  options += ",upperdir=" + Dir(name + "/upper") + ",workdir=" + Dir(name + "/work");
  const std::string merged = Dir(name + "/merged");
  EXPECT_EQ(mount("overlay", merged.c_str(), "overlay", 0, options.c_str()), 0) << strerror(errno);
  overlays_.push_back(merged);
  return merged;
}

}  // namespace reprise::sandboxd
