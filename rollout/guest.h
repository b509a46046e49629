// A sequence that the engine decodes for somebody outside of its jobs, in the same steps as their
// trajectories: one answer to a request over HTTP. The scheduler asks a guest what to feed, tells
// it what was sampled, and writes what the guest wants logged in the step's own append.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/engine.h"
#include "replay/trajectory_log.h"

namespace reprise::rollout {

// Called on the engine thread alone, between two steps.
class Guest {
 public:
  using Appends = std::vector<replay::TrajectoryLog::Append>;
  virtual ~Guest() = default;

  // False: it leaves the batch at this token boundary, and hears no more but OnDurable or OnFailed
  // of what it logged.
  virtual bool Wanted() const = 0;
  // All its tokens, at least one; longer after OnSampled. Invariant: they fit the engine's context,
  // and the ids and sampling parameters are valid, because a step is refused as a whole.
  virtual absl::Span<const int32_t> tokens() const = 0;
  virtual const engine::SamplingParams& sampling() const = 0;

  // Once, before its first step: how many of its tokens the prefix cache had.
  virtual void OnBegun(int64_t cached_tokens) = 0;
  // The next token, and the version of the weights that its sequence was fed and sampled under: all
  // of it, because a change of weights begins a guest's KV state anew. Entries that must be durable before anybody sees it go to `log`; then OnDurable
  // follows, once for every call that logged something, in order.
  virtual void OnSampled(const engine::SampledToken& token, uint64_t weight_version,
                         Appends* log) = 0;
  virtual void OnDurable() = 0;
  // The engine or the journal failed, or the daemon ends. May come twice.
  virtual void OnFailed(const absl::Status& why) = 0;
};

}  // namespace reprise::rollout
