// The tiers of this build, made from the daemon's options. A tier that this host cannot run is
// still there, and says so in ListTiers.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sandboxd/daemon.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

// `options` with its directories filled in.
absl::StatusOr<std::vector<std::unique_ptr<Substrate>>> MakeTiers(const DaemonOptions& options);

}  // namespace reprise::sandboxd
