// Runs the built `reprise` as a user would: a process with its own streams, ended by its id.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/fd.h"

namespace reprise::cli_testing {

struct Ended {
  int code = -1;  // exit code; -1 when a signal ended it
  std::string out, err;
};

// One process of the command, with stdout and stderr in files of `scratch`. Killed and reaped when
// this goes out of scope.
class Process {
 public:
  Process(const std::string& scratch, const std::vector<std::string>& args,
          const std::string& input = "");
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void Signal(int signal) const;
  pid_t pid() const { return pid_; }
  // Waits for its end.
  Ended Wait();
  // What it has written to stdout so far.
  std::string Output() const;
  bool Running();

 private:
  std::string out_path_, err_path_;
  pid_t pid_ = -1;
  int status_ = 0;
  bool reaped_ = false;
};

// To its end.
Ended Run(const std::string& scratch, const std::vector<std::string>& args,
          const std::string& input = "");

}  // namespace reprise::cli_testing
