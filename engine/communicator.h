// How the processes that run one model together exchange what each computed. Work is cut so that
// every value is computed whole by one rank, in the order in which one process would: the values
// are gathered, never added up over ranks, so that logits are bitwise the same on any number of
// ranks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace reprise::engine {

// [begin, end) of some whole.
struct Share {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

// The part of [0, n) that `rank` of `ranks` has: as even as can be, in the order of the ranks, some
// empty when there are fewer than ranks.
inline Share ShareOf(int64_t n, int rank, int ranks) {
  return {n * rank / ranks, n * (rank + 1) / ranks};
}

// One end of a group of ranks; used by one thread at a time. All ranks make the same calls in the
// same order.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;  // [0, size())
  virtual int size() const = 0;
  // Rank r has written data[bounds[r], bounds[r + 1]); after it, every rank has all of
  // data[bounds[0], bounds[size()]). `bounds`, [size() + 1], are the same on all ranks.
  virtual void AllGather(float* data, absl::Span<const int64_t> bounds) = 0;
  // UNAVAILABLE, naming the rank, from when one was lost on; AllGather returns at once then, and
  // what it should have gathered is not to be used.
  virtual absl::Status status() const = 0;
};

}  // namespace reprise::engine
