// What the daemon counts of its sandboxes and calls; raised and read on any thread.
#pragma once

#include <array>
#include <cstddef>

#include "base/metrics.h"

namespace reprise::sandboxd {

// One above every sandbox.v1.Outcome and Tier.
inline constexpr size_t kOutcomes = 32, kTiers = 8;

struct CallMetrics {
  std::array<base::Counter, kOutcomes> ended;  // with a durable RESULT, by outcome
  base::Counter replayed;                      // answered with the result that the journal had
  base::Counter joined;                        // that found their call running
  base::Counter refused;                       // of which nothing was begun
  // From the request until a thread and a place in the sandbox were free for it.
  base::Histogram queue_seconds{base::LatencyBounds()};
  // Until the INTENT was durable, and from then on until the RESULT was.
  base::Histogram intent_seconds{base::LatencyBounds()};
  base::Histogram run_seconds{base::LatencyBounds()};
};

struct SandboxMetrics {
  struct OfTier {
    base::Histogram create_seconds{base::LatencyBounds()};  // of those that were made
    base::Counter failed;                                   // that could not be made
  };
  std::array<OfTier, kTiers> tiers;
};

}  // namespace reprise::sandboxd
