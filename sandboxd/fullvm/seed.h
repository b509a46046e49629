// The disk that cloud-init reads at a guest's first start (its NoCloud source): the guest's name,
// and our two programs with what starts them. A system without cloud-init never looks at it.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace reprise::sandboxd {

struct Seed {
  std::string instance_id, hostname;  // letters, digits and '-'
  std::string guest_program, agent;   // reprise-guest and reprise-agent, on this host
};

// Writes an ISO 9660 image labelled "cidata" to `path`, readable for every user.
absl::Status WriteSeed(const std::string& path, const Seed& seed);

}  // namespace reprise::sandboxd
