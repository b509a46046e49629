#include "cli_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "base/ids.h"

namespace reprise::cli_testing {

Process::Process(const std::string& scratch, const std::vector<std::string>& args,
                 const std::string& input) {
  std::string stem = scratch + "/" + base::RandomHex(6);
  out_path_ = stem + ".out";
  err_path_ = stem + ".err";
  std::string in_path = stem + ".in";
  std::ofstream(in_path) << input;
  std::vector<std::string> words = {std::string(REPRISE_BIN_DIR) + "/reprise"};
  words.insert(words.end(), args.begin(), args.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  base::UniqueFd in(::open(in_path.c_str(), O_RDONLY | O_CLOEXEC));
  base::UniqueFd out(::open(out_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  base::UniqueFd err(::open(err_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  pid_ = ::fork();
  if (pid_ == 0) {
    ::dup2(in.get(), STDIN_FILENO);
    ::dup2(out.get(), STDOUT_FILENO);
    ::dup2(err.get(), STDERR_FILENO);
    ::unsetenv("REPRISE_STATE");  // of whoever runs the tests
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
}

Process::~Process() {
  if (reaped_ || pid_ < 0) return;
  Signal(SIGKILL);
  ::waitpid(pid_, &status_, 0);
}

void Process::Signal(int signal) const { ::kill(pid_, signal); }

std::string Process::Output() const { return base::ReadFile(out_path_).value_or(""); }

bool Process::Running() {
  if (!reaped_ && ::waitpid(pid_, &status_, WNOHANG) == pid_) reaped_ = true;
  return !reaped_;
}

Ended Process::Wait() {
  if (!reaped_) ::waitpid(pid_, &status_, 0);
  reaped_ = true;
  return {WIFEXITED(status_) ? WEXITSTATUS(status_) : -1, Output(),
          base::ReadFile(err_path_).value_or("")};
}

Ended Run(const std::string& scratch, const std::vector<std::string>& args,
          const std::string& input) {
  return Process(scratch, args, input).Wait();
}

}  // namespace reprise::cli_testing
