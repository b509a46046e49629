// The microvm tier: each sandbox is one small virtual machine with reprise-agent under our own
// init. A supervisor process owns the machine and the agent owns its calls, so both live on when
// the daemon dies. Sandboxes of one kind are clones of a machine that was booted once.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

struct MicrovmTierOptions {
  std::string state_dir;   // private to the daemon; the tier keeps its files in STATE_DIR/microvm
  std::string helper_dir;  // where reprise-microvm, reprise-guest and reprise-agent are
  std::string guest_dir;   // what scripts/guest-kernel made; "" = HELPER_DIR/guest
  std::string qemu = "/usr/bin/qemu-system-x86_64";
  bool snapshots = true;  // false: every sandbox boots from nothing
  bool probe =
      false;  // run the probe guest before the tier is offered (else with the first sandbox)
};

// Needs nothing to be installed: Describe tells what is missing, and every verb answers UNAVAILABLE
// until it is there. Errors: the state directory cannot be used.
absl::StatusOr<std::unique_ptr<Substrate>> MakeMicrovmTier(const MicrovmTierOptions& options);

}  // namespace reprise::sandboxd
