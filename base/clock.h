// Time, in one place: wall clock for records, monotonic clock for durations, a stopwatch for step timings.
#pragma once

#include <cstdint>

namespace reprise::base {

// Microseconds since the Unix epoch.
int64_t WallMicros();
// Monotonic microseconds; only differences mean anything.
int64_t MonotonicMicros();

class Stopwatch {
 public:
  Stopwatch() : start_us_(MonotonicMicros()) {}
  int64_t ElapsedMicros() const { return MonotonicMicros() - start_us_; }
  double ElapsedMillis() const { return static_cast<double>(ElapsedMicros()) / 1000.0; }
  void Restart() { start_us_ = MonotonicMicros(); }

 private:
  int64_t start_us_;
};

}  // namespace reprise::base
