// What the HTTP port counts about its requests.
#pragma once

#include <array>
#include <cstdint>

#include "base/metrics.h"

namespace reprise::rollout::http {

struct HttpMetrics {
  enum Ending { kStop, kLength, kAborted, kFailed, kEndings };

  std::array<base::Counter, kEndings> endings;  // of answers
  base::Counter replayed;                       // answers that came from the record
  base::Counter prompt_tokens, generation_tokens;
  base::Histogram first_token{base::LatencyBounds()};  // seconds from the request on
  base::Histogram inter_token{base::LatencyBounds()};  // seconds
  base::Histogram whole{base::LatencyBounds()};        // seconds from the request to its last token
};

}  // namespace reprise::rollout::http
