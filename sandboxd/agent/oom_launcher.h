// Commands of a machine whose kernel is the sandbox's own: its count of OOM kills tells which of
// them ended for want of memory. (Elsewhere only the host can tell.)
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "sandboxd/agent/call.h"

namespace reprise::sandboxd::agent {

class OomLauncher final : public Launcher {
 public:
  // `vmstat` has a line "oom_kill N".
  explicit OomLauncher(std::string vmstat) : vmstat_(std::move(vmstat)) {}

  bool Launch(const Start& start, const Identity& identity, const std::vector<std::string>& env,
              const std::string& files, SpawnedCommand* command, std::string* why) override;
  void Judge(const Start& start, End* end) override;

 private:
  uint64_t Kills() const;

  const std::string vmstat_;
  std::map<std::string, uint64_t> before_;  // by call that runs: kills when it began
};

}  // namespace reprise::sandboxd::agent
