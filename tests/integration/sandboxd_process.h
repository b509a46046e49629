// The program sandboxd on a state directory, for tests that kill it.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sandboxd/client/sandbox_client.h"

namespace reprise::sandboxd {

// Ended by its pid, and with the test.
class SandboxdProcess {
 public:
  // `options`: of its command line, beside the state directory.
  SandboxdProcess(std::string state, std::vector<std::string> options)
      : state_(std::move(state)), options_(std::move(options)) {}
  ~SandboxdProcess();
  SandboxdProcess(const SandboxdProcess&) = delete;
  SandboxdProcess& operator=(const SandboxdProcess&) = delete;

  std::string address() const { return "unix:" + state_ + "/sandboxd.sock"; }
  absl::StatusOr<std::unique_ptr<SandboxClient>> Connect() const;
  // `more`: options of this one process.
  void Start(const std::vector<std::string>& more = {});
  // Sends the signal (0: none, it ends by itself) and waits. The wait status; -1 when it does not
  // run.
  int End(int signal);

 private:
  const std::string state_;
  const std::vector<std::string> options_;
  pid_t pid_ = -1;
};

}  // namespace reprise::sandboxd
