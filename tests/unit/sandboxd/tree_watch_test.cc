// Watches of directories as an agent keeps them: nothing is missed in trees that change while they
// are read, and what the kernel drops is told.
#include "sandboxd/agent/tree_watch.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/fd.h"

namespace reprise::sandboxd::agent {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class TreeWatchTest : public ::testing::Test {
 protected:
  std::string At(const std::string& path) const { return scratch_.path() + "/" + path; }
  void MakeFile(const std::string& path) const { std::ofstream(At(path)) << ""; }
  void Open(bool recursive) {
    watch_ = std::make_unique<TreeWatch>(
        scratch_.path(), recursive, [this](WatchKind kind, const std::string& path) {
          constexpr const char* kNames = "?scwdrmo";
          events_.push_back(kNames[static_cast<int>(kind)] + (":" + path));
        });
    ASSERT_EQ(watch_->Open(), 0);
  }
  // Of one step.
  std::vector<std::string> Events() {
    EXPECT_TRUE(watch_->Step());
    return std::exchange(events_, {});
  }

  base::ScratchDir scratch_;
  std::unique_ptr<TreeWatch> watch_;
  std::vector<std::string> events_;
};

TEST_F(TreeWatchTest, ATreeThatGrowsBeforeItIsLookedAtIsToldWhole) {
  Open(/*recursive=*/true);
  std::filesystem::create_directories(At("a/b/c"));
  MakeFile("a/b/c/f");
  EXPECT_THAT(Events(), ElementsAre("c:a", "c:a/b", "c:a/b/c", "c:a/b/c/f"));
  MakeFile("a/b/g");
  std::filesystem::remove(At("a/b/c/f"));
  EXPECT_THAT(Events(), ElementsAre("c:a/b/g", "d:a/b/c/f"));
  // Told once, whether its own event comes or not.
  MakeFile("a/b/c/f");
  EXPECT_THAT(Events(), ElementsAre("c:a/b/c/f"));
}

TEST_F(TreeWatchTest, MovedDirectoriesKeepTheirWatchesUnderTheirNewNames) {
  std::filesystem::create_directories(At("a/b"));
  std::filesystem::create_directories(At("a-b"));
  Open(/*recursive=*/true);
  std::filesystem::rename(At("a"), At("z"));
  MakeFile("z/b/f");
  EXPECT_THAT(Events(), ElementsAre("r:a", "c:z", "c:z/b/f"));
  // The name is taken by another, before anyone looked.
  std::filesystem::create_directory(At("n"));
  std::filesystem::rename(At("n"), At("m"));
  std::filesystem::create_directory(At("n"));
  EXPECT_THAT(Events(), ElementsAre("c:n", "r:n", "c:m", "c:n"));
  MakeFile("n/1");
  MakeFile("m/2");
  EXPECT_THAT(Events(), ElementsAre("c:n/1", "c:m/2"));
}

TEST_F(TreeWatchTest, ADirectoryThatLeavesIsNotFollowed) {
  base::ScratchDir elsewhere;
  std::filesystem::create_directories(At("a/b"));
  Open(/*recursive=*/true);
  std::filesystem::rename(At("a"), elsewhere.path() + "/a");
  EXPECT_THAT(Events(), ElementsAre("r:a"));
  std::ofstream(elsewhere.path() + "/a/b/f") << "x";
  EXPECT_THAT(Events(), IsEmpty());
  std::filesystem::rename(elsewhere.path() + "/a", At("back"));
  MakeFile("back/b/g");
  EXPECT_THAT(Events(), Contains("c:back"));
  MakeFile("back/b/h");
  EXPECT_THAT(Events(), ElementsAre("c:back/b/h"));
}

TEST_F(TreeWatchTest, LinksAreNotFollowedAndOneLevelIsOneLevel) {
  base::ScratchDir elsewhere;
  std::filesystem::create_directory(At("sub"));
  Open(/*recursive=*/false);
  std::filesystem::create_directory_symlink(elsewhere.path(), At("link"));
  MakeFile("sub/f");
  EXPECT_THAT(Events(), ElementsAre("c:link"));
  Open(/*recursive=*/true);
  std::ofstream(elsewhere.path() + "/f") << "x";
  EXPECT_THAT(Events(), IsEmpty());
}

TEST_F(TreeWatchTest, WhatTheKernelDropsIsToldAndTheWatchesAreMadeAnew) {
  Open(/*recursive=*/true);
  // More than the kernel's queue holds (16384 by default).
  int queue = 0;
  std::ifstream("/proc/sys/fs/inotify/max_queued_events") >> queue;
  if (queue > 200'000) GTEST_SKIP() << "the kernel's queue of " << queue << " events is too long";
  for (int i = 0; i < queue / 2 + 2; ++i) {
    ASSERT_EQ(::mkdir(At("d").c_str(), 0755), 0);
    ASSERT_EQ(::rmdir(At("d").c_str()), 0);
  }
  std::filesystem::create_directory(At("last"));
  EXPECT_THAT(Events(), Contains("o:"));
  MakeFile("last/f");
  EXPECT_THAT(Events(), ElementsAre("c:last/f")) << "made during the overflow, watched after it";
}

TEST_F(TreeWatchTest, TheEndOfTheDirectoryIsTheEnd) {
  std::filesystem::create_directories(At("root/sub"));
  TreeWatch watch(At("root"), true,
                  [this](WatchKind, const std::string& path) { events_.push_back(path); });
  ASSERT_EQ(watch.Open(), 0);
  std::filesystem::remove_all(At("root"));
  EXPECT_FALSE(watch.Step());
  EXPECT_THAT(events_, ElementsAre("sub", ""));
  EXPECT_EQ(watch.Open(), ENOENT);
  MakeFile("file");
  EXPECT_EQ(TreeWatch(At("file"), false, nullptr).Open(), ENOTDIR);
}

}  // namespace
}  // namespace reprise::sandboxd::agent
