// What a generation logs while it is decoded, when its request belongs to a trajectory.
#pragma once

#include <cstdint>
#include <string>

#include "engine/engine.h"
#include "rollout/guest.h"

namespace reprise::rollout::http {

// On the engine thread, as Guest.
class Recording {
 public:
  virtual ~Recording() = default;
  virtual void OnBegun(int64_t cached_tokens) = 0;
  // `finish_reason`: of the last token of the answer, else nullptr.
  virtual void OnSampled(const engine::SampledToken& token, uint64_t weight_version,
                         const std::string* finish_reason, Guest::Appends* log) = 0;
  // What one call of OnSampled logged is durable.
  virtual void OnDurable() = 0;
};

}  // namespace reprise::rollout::http
