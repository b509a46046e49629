#include "base/clock.h"

#include <ctime>

namespace reprise::base {
namespace {

int64_t Micros(clockid_t clock) {
  timespec now;
  ::clock_gettime(clock, &now);
  return static_cast<int64_t>(now.tv_sec) * 1'000'000 + now.tv_nsec / 1'000;
}

}  // namespace

int64_t WallMicros() { return Micros(CLOCK_REALTIME); }
int64_t MonotonicMicros() { return Micros(CLOCK_MONOTONIC); }

}  // namespace reprise::base
