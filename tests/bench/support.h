// What the benchmarks share: percentiles, and an end with one line when something fails.
#pragma once

#include <errno.h>

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise {

// The value below which `part` (0 to 1) of them lie; 0 for none.
inline double Percentile(std::vector<double> values, double part) {
  if (values.empty()) return 0;
  const size_t at =
      std::min(values.size() - 1, static_cast<size_t>(part * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(at), values.end());
  return values[at];
}

inline void OrExit(const absl::Status& status) {
  if (status.ok()) return;
  fmt::print(stderr, "{}: {}\n", program_invocation_short_name, status.ToString());
  std::exit(1);
}
template <typename T>
T OrExit(absl::StatusOr<T> value) {
  OrExit(value.status());
  return *std::move(value);
}

}  // namespace reprise
