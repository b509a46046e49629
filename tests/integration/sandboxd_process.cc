#include "tests/integration/sandboxd_process.h"

#include <errno.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace reprise::sandboxd {

SandboxdProcess::~SandboxdProcess() { End(SIGTERM); }

absl::StatusOr<std::unique_ptr<SandboxClient>> SandboxdProcess::Connect() const {
  ClientOptions options;
  options.address = address();
  return SandboxClient::Connect(options);
}

void SandboxdProcess::Start(const std::vector<std::string>& more) {
  std::vector<std::string> words = {std::string(REPRISE_BIN_DIR) + "/sandboxd",
                                    "--state",
                                    state_,
                                    "--function-pool",
                                    "0",
                                    "--log-level",
                                    "warn"};
  words.insert(words.end(), options_.begin(), options_.end());
  words.insert(words.end(), more.begin(), more.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_ = fork();
  ASSERT_GE(pid_, 0);
  if (pid_ != 0) return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  execv(argv[0], argv.data());
  _exit(127);
}

int SandboxdProcess::End(int signal) {
  if (pid_ <= 0) return -1;
  kill(pid_, signal);
  int status = -1;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return status;
}

}  // namespace reprise::sandboxd
