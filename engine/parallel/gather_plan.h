// Which collectives gather the parts of a Communicator's call: one where all parts are equal, as
// the library that does them wants it, otherwise a broadcast from every rank that has something.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace reprise::engine {

struct GatherPlan {
  // Elements [begin, begin + count) that rank `root` has.
  struct Part {
    int root = 0;
    int64_t begin = 0, count = 0;
  };
  // One gather of parts[r].count elements from each rank r, in place, from parts[0].begin on.
  bool even = false;
  std::vector<Part> parts;  // not empty ones, by rank
};

// For the bounds of Communicator::AllGather. INVALID_ARGUMENT when they are not ranks + 1 ascending
// numbers from 0 on.
absl::StatusOr<GatherPlan> PlanGather(absl::Span<const int64_t> bounds, int ranks);

}  // namespace reprise::engine
