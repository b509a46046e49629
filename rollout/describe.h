// A trajectory's log as text, a line an entry, as `reprise trajectory show` prints it.
#pragma once

#include <string>
#include <vector>

#include "absl/types/span.h"
#include "engine/tokenizer.h"
#include "reprise/journal/v1/journal.pb.h"

namespace reprise::rollout {

// Each line begins with the number of its first entry; tokens that were sampled one after another
// under one weight version share a line. `tokenizer` gives their text; nullptr leaves it out.
std::vector<std::string> DescribeLog(
    absl::Span<const ::reprise::journal::v1::TrajectoryEntry> entries,
    const engine::Tokenizer* tokenizer);

}  // namespace reprise::rollout
