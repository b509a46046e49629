// The system calls that a container may make: an allow-list that is a strict subset of Docker's
// default profile without its capability-bound additions. Everything else fails with EPERM; clone3
// with ENOSYS, so that libc falls back to clone, whose namespace flags are denied. Foreign ABIs
// (32-bit, x32) are refused by the filter itself.
#pragma once

#include <string_view>
#include <vector>

namespace reprise::sandboxd {

// Allowed without a look at their arguments, sorted.
const std::vector<std::string_view>& ContainerAllowedSyscalls();

}  // namespace reprise::sandboxd
