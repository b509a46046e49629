// The root file system of the guest and the process that becomes reprise-agent in it.
#pragma once

#include <sys/types.h>

#include <string>

#include "sandboxd/microvm/guest_wire.h"

namespace reprise::sandboxd::microvm {

inline constexpr char kRunDir[] = "/run-agent";  // in the initramfs: where the agent's socket lies
inline constexpr char kNewRoot[] = "/newroot";

// This process runs before whatever a sandbox runs, which may be many and busy; its children do
// not.
bool RunFirst();

// What the kernel needs before anything else: /dev, /proc, /sys, and the modules of the initramfs
// in their order. False with `why`.
bool PrepareKernel(std::string* why);

// The image (first virtio disk, EROFS) with a tmpfs over it at kNewRoot.
bool MountRoot(const Setup& setup, std::string* why);

// The control group that bounds everything in the sandbox.
bool MakeCgroup(const Setup& setup, std::string* why);

// Starts reprise-agent as the init of its own pid and mount namespace in the new root. -1 with
// `why`; the agent says on the console what fails after the fork.
pid_t StartAgent(const Setup& setup, std::string* why);

// The same in a system of its own: a child among its processes.
pid_t StartAgentHere(const Setup& setup, std::string* why);

// Another clock, other entropy, other names and limits; each guest that starts from one snapshot
// gets its own.
bool ApplyRenew(const Renew& renew, std::string* why);

}  // namespace reprise::sandboxd::microvm
