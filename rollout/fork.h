// A trajectory that branches from another: which part of the log it shares, and its first entries.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "reprise/journal/v1/journal.pb.h"

namespace reprise::rollout {

namespace journal = ::reprise::journal::v1;

struct ForkPlan {
  std::string id;        // of the new trajectory
  uint32_t number = 0;   // at its sample, from 1
  uint32_t at_step = 0;  // assistant turns that both have
  uint64_t seed = 0;
};

// The log of the new trajectory as it begins: an entry 0 of its own, then the parent's entries up
// to where its assistant turn `at_step` (from 0) begins. FAILED_PRECONDITION when the parent has no
// such turn, or did not go on after it; the clock field of entry 0 is the caller's.
absl::StatusOr<std::vector<journal::TrajectoryEntry>> ForkLog(
    const std::vector<journal::TrajectoryEntry>& parent, const ForkPlan& plan);

}  // namespace reprise::rollout
