// What a scheduler counts; read from any thread.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/metrics.h"

namespace reprise::rollout {

inline constexpr size_t kOutcomesMax = 32;  // above every sandbox.v1.Outcome

struct SchedulerMetrics {
  base::Counter steps;
  base::Counter fed;               // tokens of prompts and results, again after restarts
  base::Counter sampled;           // tokens
  base::Counter commits, entries;  // durable batches of the log, and what is in them
  base::Counter replayed_calls;    // that sandboxd answered from its journal
  std::array<base::Counter, kOutcomesMax> calls;  // tool calls by outcome
  std::array<base::Counter, 2> judgements;  // of HTTP judges: [0] without a value, [1] with one
  base::Histogram step_seconds{base::LatencyBounds()};
  base::Histogram commit_seconds{base::LatencyBounds()};  // from the append until it is durable
  // As of the last step.
  std::atomic<int64_t> batch{0}, reused{0}, kv_bytes{0}, prefix_cache_bytes{0},
      prefix_disk_bytes{0};
  base::Counter preemptions;  // KV states that made room for others
};

}  // namespace reprise::rollout
