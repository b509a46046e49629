// One line of text for one entry of a trajectory's log, as `reprise trajectory show` prints it.
#pragma once

#include <cstdint>
#include <string>

#include "reprise/journal/v1/journal.pb.h"

namespace reprise::rollout {

std::string DescribeEntry(uint64_t index, const ::reprise::journal::v1::TrajectoryEntry& entry);

}  // namespace reprise::rollout
