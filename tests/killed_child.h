// A test that must die: a DISABLED_ test of the same program, run in a process of its own, so that
// it starts with none of the parent's threads.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

extern char** environ;

namespace reprise {

inline constexpr int kReportFd = 64;  // where the child tells of its steps, a byte each

// What the child was given; empty when the test was started by hand.
inline std::string ChildDir() {
  const char* dir = ::getenv("REPRISE_TEST_CHILD_DIR");
  return dir == nullptr ? "" : dir;
}
inline std::string ChildPoint() {
  const char* point = ::getenv("REPRISE_TEST_CHILD_POINT");
  return point == nullptr ? "" : point;
}
inline bool Report() { return ::write(kReportFd, "x", 1) == 1; }

struct ChildEnd {
  int status = 0;        // of waitpid
  uint64_t reports = 0;  // bytes that came before the end
};

// Runs `test` ("Suite.DISABLED_Name") to its end.
inline ChildEnd RunChild(const std::string& test, const std::string& dir,
                         const std::string& point) {
  ChildEnd end;
  int fds[2];
  EXPECT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  std::vector<std::string> words = {"/proc/self/exe", "--gtest_also_run_disabled_tests",
                                    "--gtest_filter=" + test};
  std::vector<std::string> env = {"REPRISE_TEST_CHILD_DIR=" + dir,
                                  "REPRISE_TEST_CHILD_POINT=" + point};
  for (char** variable = environ; *variable != nullptr; ++variable) env.push_back(*variable);
  auto pointers = [](std::vector<std::string>& from) {
    std::vector<char*> to;
    for (std::string& text : from) to.push_back(text.data());
    to.push_back(nullptr);
    return to;
  };
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, fds[1], kReportFd);
  pid_t child = -1;
  EXPECT_EQ(::posix_spawn(&child, words[0].c_str(), &actions, nullptr, pointers(words).data(),
                          pointers(env).data()),
            0);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(fds[1]);
  for (char byte; ::read(fds[0], &byte, 1) == 1;) ++end.reports;
  ::close(fds[0]);
  EXPECT_EQ(::waitpid(child, &end.status, 0), child);
  return end;
}

}  // namespace reprise
