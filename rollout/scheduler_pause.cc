// The scheduler's part that takes a paused job out of memory and brings it back: KV states go to
// disk and come from there, sandboxes are paused where their tier can. A sandbox wakes with the
// next request to it; a state that cannot be read back is made again from the log.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "rollout/identity.h"
#include "rollout/scheduler_parts.h"
#include "rollout/text.h"

namespace reprise::rollout {

void Scheduler::Shelve(const LivePtr& live) {
  if (live->dead || live->state.sealed) return;
  PauseSandbox(live);
  SaveKv(live);
}

void Scheduler::SaveKv(const LivePtr& live) {
  if (live->kv_busy || !live->sequence || live->sequence->length() == 0) return;
  live->kv_busy = true;
  auto bytes = std::make_shared<std::string>(live->sequence->Save());
  live->sequence.reset();
  pool_->Run([this, live, bytes] {
    absl::Status saved = kv_files_.Save(live->plan.id, *bytes);
    Post([live, saved] {
      live->kv_busy = false;
      live->kv_on_disk = saved.ok();
      if (!saved.ok()) {
        base::LogWarn(fmt::format("KV state of {} was not saved and will be made again: {}",
                                  live->plan.id, Message(saved)));
      }
    });
  });
}

void Scheduler::Unshelve(const LivePtr& live) {
  live->kv_busy = true;
  live->kv_on_disk = false;
  pool_->Run([this, live] {
    auto bytes = kv_files_.Load(live->plan.id);
    kv_files_.Remove(live->plan.id);
    Post([this, live, bytes = std::move(bytes)] {
      live->kv_busy = false;
      if (live->dead || live->state.sealed || live->sequence) return;
      absl::Status fits = bytes.ok() ? Restore(live, *bytes) : bytes.status();
      if (fits.ok()) return;
      base::LogWarn(fmt::format("KV state of {} is made again: {}", live->plan.id, Message(fits)));
    });
  });
}

absl::Status Scheduler::Restore(const LivePtr& live, const std::string& bytes) {
  const replay::TrajectoryState& state = live->state;
  absl::StatusOr<std::unique_ptr<engine::Sequence>> restored =
      absl::FailedPreconditionError("no weights of it are known");
  std::vector<std::string> digests;
  for (const replay::KvSpan& span : state.kv_spans)
    digests.push_back(weights_.Digest(span.version));
  // The newest part of a state may be of any span: weights may have come since.
  for (size_t at = state.kv_spans.size(); at-- > 0;) {
    auto weights = weights_.Get(state.kv_spans[at].version);
    if (!weights.ok()) continue;
    restored = engine_->Restore(bytes, weights->get());
    if (!absl::IsFailedPrecondition(restored.status())) break;
  }
  if (!restored.ok()) return restored.status();
  const engine::Sequence& sequence = **restored;
  const size_t length = static_cast<size_t>(sequence.length());
  if (length >= state.tokens.size() ||
      !std::equal(sequence.tokens().begin(), sequence.tokens().end(), state.tokens.begin())) {
    return absl::FailedPreconditionError("the saved state is of other tokens");
  }
  if (live->job->spec()->routed_experts && live->routed(RouteBytes()) < length) {
    return absl::FailedPreconditionError("the experts of its newest tokens are not in the log");
  }
  std::vector<engine::KvOrigin> expected;
  for (size_t i = 0; i < state.kv_spans.size() && state.kv_spans[i].begin < length; ++i) {
    if (expected.empty() || expected.back().digest != digests[i]) {
      expected.push_back({digests[i], static_cast<int64_t>(state.kv_spans[i].begin)});
    }
  }
  if (sequence.origins() != absl::MakeConstSpan(expected)) {
    return absl::FailedPreconditionError("the saved state was made by other weights");
  }
  live->sequence = *std::move(restored);
  return absl::OkStatus();
}

void Scheduler::PauseSandbox(const LivePtr& live) {
  if (live->outside || !live->may_have_sandbox || live->sandbox_stopped) return;
  live->outside = true;
  pool_->Run([this, live] {
    absl::Status paused = sandboxes_->Pause(SandboxId(live->plan.id));
    if (!paused.ok() && !absl::IsUnimplemented(paused) && !absl::IsNotFound(paused) &&
        !absl::IsCancelled(paused)) {
      base::LogWarn(
          fmt::format("sandbox of {} was not paused: {}", live->plan.id, Message(paused)));
    }
    Post([this, live] {
      live->outside = false;
      if (live->dead) return;
      Advance(live);
      RetireIfDone(live);
    });
  });
}

}  // namespace reprise::rollout
