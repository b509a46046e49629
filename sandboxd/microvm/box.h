// One box: the directory of one machine, and the supervisor in it. Spawning, asking, killing.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fd.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/microvm/vm_config.h"

namespace reprise::sandboxd::microvm {

namespace sandbox = ::reprise::sandbox::v1;

inline constexpr int64_t kAskBoxMs = 30'000;

struct BoxFds {
  int ram = -1, state = -1;  // memory files; -1: none
};

// Makes the directory `box` and a machine in it; returns when that is ready (Mode::kProbe and
// kTemplate: when it has ended again). `program` is reprise-microvm. After an error nothing runs,
// and the directory is gone. `steps` (may be null) receives the time of each step.
absl::Status StartBox(const std::string& box, const std::string& program, const VmConfig& config,
                      const BoxFds& fds, std::vector<sandbox::StepTime>* steps);

// The same of a machine with VmConfig::ready, which ends when what is returned is closed before it
// was adopted.
absl::StatusOr<base::UniqueFd> StartReadyBox(const std::string& box, const std::string& program,
                                             const VmConfig& config, const BoxFds& fds);

// Whether the supervisor or its machine lives.
bool BoxLives(const std::string& box);
// Why the machine ended, as its supervisor wrote; "" when it did not say.
std::string BoxEnd(const std::string& box);
// UNAVAILABLE when the supervisor is there and does not answer, NOT_FOUND when it is gone.
absl::StatusOr<VmState> BoxState(const std::string& box);
// `frame`: a request that is answered with OK or an error.
absl::Status AskBox(const std::string& box, const std::string& frame,
                    int64_t timeout_ms = kAskBoxMs);
inline absl::Status AskBox(const std::string& box, VmRequest request) {
  return AskBox(box, VmFrame(request));
}
absl::StatusOr<ConsoleData> BoxConsole(const std::string& box, const ConsoleRequest& request);
// What its supervisor was started with.
absl::StatusOr<VmConfig> BoxConfig(const std::string& box);
// Kills what lives and removes the directory. OK when there is none.
absl::Status RemoveBox(const std::string& box);

}  // namespace reprise::sandboxd::microvm
