// The scheduler's part that feeds the engine.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/status_macros.h"
#include "engine/config.h"
#include "rollout/identity.h"
#include "rollout/scheduler_parts.h"
#include "rollout/text.h"

namespace reprise::rollout {

bool Scheduler::HasRunnable() const {
  if (paused_) return false;
  return !visits_.empty() || std::any_of(lives_.begin(), lives_.end(), [this](const LivePtr& live) {
    return Runnable(live);
  });
}

bool Scheduler::Runnable(const LivePtr& live) const {
  return live->runnable && !live->dead && !live->kv_busy &&
         live->job->Is(journal::JOB_STATE_RUNNING);
}

void Scheduler::StepOnce() {
  ReapGuests();
  std::vector<engine::StepItem> items;
  std::vector<LivePtr> lives;    // of the items, nullptr for a guest's
  std::vector<VisitPtr> visits;  // of the guests' items, in their order
  std::vector<WeightsPtr> held;  // over the step
  std::vector<std::pair<std::shared_ptr<JobRun>, absl::Status>> unfit;
  size_t budget = kStepTokens;
  KeepBound();
  // Those that decode go first: a long prompt never holds up the others' next token.
  for (bool prefill : {false, true}) {
    for (const LivePtr& live : lives_) {
      if (budget == 0) break;
      if (!Runnable(live)) continue;
      if (!live->sequence && !TakeRoom(live)) continue;
      if (!live->sequence && live->kv_on_disk) {
        Unshelve(live);
        continue;
      }
      if (!live->sequence) BeginSequence(live);
      size_t fed = static_cast<size_t>(live->sequence->length());
      size_t left = live->state.tokens.size() - fed;
      if ((left > 1) != prefill) continue;
      size_t end = 0;
      auto weights = FeedingWeights(live, fed, &end);
      if (!weights.ok()) {
        unfit.emplace_back(live->job, weights.status());
        continue;
      }
      size_t count = std::min({left, kPrefillChunk, budget, end - fed});
      if (count == left) {
        if (absl::Status fits = Constrain(live); !fits.ok()) {
          unfit.emplace_back(live->job, std::move(fits));
          continue;
        }
      }
      budget -= count;
      engine::StepItem item;
      item.sequence = live->sequence.get();
      item.tokens = absl::MakeConstSpan(live->state.tokens).subspan(fed, count);
      item.sampling = count == left ? &live->sampling : nullptr;
      item.weights = weights->get();
      held.push_back(*std::move(weights));
      item.want_routes =
          live->job->spec()->routed_experts && fed + count > live->routed(RouteBytes());
      if (fed < live->logged) live->job->prefilled_again += std::min(count, live->logged - fed);
      items.push_back(std::move(item));
      lives.push_back(live);
    }
    AddGuestItems(prefill, &budget, &items, &visits);
    lives.resize(items.size());
  }
  for (const auto& [job, why] : unfit) {
    if (!job->Is(journal::JOB_STATE_FAILED)) FailJob(job, why);
  }
  if (!unfit.empty()) return;
  if (items.empty()) {
    metrics_.batch = 0;
    return;
  }
  base::Stopwatch stopwatch;
  absl::Status status = engine_->Step(absl::MakeSpan(items));
  if (!status.ok()) {
    FailGuests(status);
    for (const LivePtr& live : lives) {
      if (live != nullptr && !live->dead) {
        FailJob(live->job, absl::Status(status.code(), fmt::format("the engine refused a step: {}",
                                                                   Message(status))));
      }
    }
    return;
  }
  const int64_t step_us = stopwatch.ElapsedMicros();
  CountStep(items, step_us);
  OnStepped(items, lives, visits, step_us);
}

absl::Status Scheduler::Constrain(const LivePtr& live) {
  // A turn goes on, or the next one begins.
  const replay::Segment& last = live->state.segments.back();
  const bool begun = last.role == replay::Segment::Role::kSampled;
  const size_t begin = begun ? last.begin : live->state.tokens.size();
  const Task& task = *live->plan.task;
  const auto& grammar =
      (begun ? last.turn : live->state.turns) == 0 ? task.first_turn : task.later_turns;
  std::shared_ptr<engine::AnswerConstraint>& constraint = live->sampling.constraint;
  if (grammar == nullptr || (constraint != nullptr && constraint->begin() == begin))
    return absl::OkStatus();
  ASSIGN_OR_RETURN(std::shared_ptr<engine::TokenMasks> masks, engine_->MasksFor(grammar));
  constraint = std::make_shared<engine::AnswerConstraint>(std::move(masks), begin);
  return absl::OkStatus();
}

void Scheduler::BeginSequence(const LivePtr& live) {
  // A prefix that another sequence read brings no routes, and is of one version's weights.
  size_t end = 0;
  const auto weights = FeedingWeights(live, 0, &end);
  if (live->job->spec()->routed_experts || !weights.ok()) {
    live->sequence = engine_->NewSequence();
    return;
  }
  live->sequence = engine_->NewSequence(absl::MakeConstSpan(live->state.tokens).subspan(0, end),
                                        weights->get());
  // Of the prompt: later ones are of a resumption.
  if (live->state.entries == 1)
    live->timing.set_cached_tokens(static_cast<uint64_t>(live->sequence->length()));
}

void Scheduler::CountStep(absl::Span<const engine::StepItem> items, int64_t step_us) {
  metrics_.steps.Add();
  metrics_.step_seconds.Observe(static_cast<double>(step_us) / 1e6);
  metrics_.batch = static_cast<int64_t>(items.size());
  for (const engine::StepItem& item : items) {
    if (item.tokens.size() > 1) metrics_.fed.Add(item.tokens.size());
    if (item.sampling != nullptr) metrics_.sampled.Add();
  }
  const engine::EngineStats stats = engine_->stats();
  metrics_.reused = stats.reused_tokens;
  metrics_.kv_bytes = stats.kv_bytes;
  metrics_.prefix_cache_bytes = stats.prefix_cache_bytes;
  metrics_.prefix_disk_bytes = stats.prefix_disk_bytes;
}

void Scheduler::OnStepped(absl::Span<const engine::StepItem> items,
                          const std::vector<LivePtr>& lives,
                          const std::vector<VisitPtr>& visits, int64_t step_us) {
  std::vector<JobRun*> jobs;
  auto visit = visits.begin();
  for (size_t i = 0; i < items.size(); ++i) {
    const LivePtr& live = lives[i];
    if (live == nullptr) {
      OnGuestStepped(*visit++, items[i]);
      continue;
    }
    journal::Timing& timing = live->timing;
    if (items[i].tokens.size() > 1) {
      timing.set_prefill_us(timing.prefill_us() + step_us);
    } else {
      timing.set_decode_us(timing.decode_us() + step_us);
    }
    if (items[i].want_routes) {
      size_t end = static_cast<size_t>(live->sequence->length());
      size_t begin = end - items[i].tokens.size();
      PackRoutes(items[i].routes, live->routed(RouteBytes()) - begin, &live->routes);
    }
    if (items[i].sampling == nullptr) continue;
    // Its state is whole: only the newest weights feed it on.
    std::erase_if(live->weights,
                  [&](const auto& held) { return held.first != live->state.weight_version(); });
    JobRun* job = live->job.get();
    uint64_t position = live->state.tokens.size();
    ++job->decoded;
    if (position < live->logged) ++job->decoded_again;
    if (std::find(jobs.begin(), jobs.end(), job) == jobs.end()) jobs.push_back(job);
    journal::TrajectoryEntry entry;
    journal::SampledTokens* sampled = entry.mutable_sampled();
    sampled->set_position(position);
    sampled->add_ids(items[i].sampled_id);
    sampled->add_logprobs(items[i].logprob);
    sampled->set_weight_version(live->state.weight_version());
    sampled->set_routed_experts(std::exchange(live->routes, {}));
    if (live->sampling.kept_max > 0) {
      const std::vector<int32_t>& kept = items[i].sampled[0].kept;
      sampled->add_kept_counts(static_cast<uint32_t>(kept.size()));
      sampled->mutable_kept_ids()->Add(kept.begin(), kept.end());
    }
    NoteAllowed(items[i].sampled[0], sampled);
    Write(live, std::move(entry));
    Advance(live);
  }
  for (JobRun* job : jobs) job->decode_us += step_us;
}

size_t Scheduler::RouteBytes() const {
  const engine::ModelConfig& config = engine_->config();
  size_t width = config.num_experts <= kMaxByteExperts ? 1 : 2;
  return static_cast<size_t>(config.num_layers * config.experts_per_token) * width;
}

void Scheduler::PackRoutes(const std::vector<uint16_t>& routes, size_t skip,
                           std::string* out) const {
  const engine::ModelConfig& config = engine_->config();
  bool wide = config.num_experts > kMaxByteExperts;
  size_t row = static_cast<size_t>(config.num_layers * config.experts_per_token);
  for (size_t i = skip * row; i < routes.size(); ++i) {
    out->push_back(static_cast<char>(routes[i] & 0xff));
    if (wide) out->push_back(static_cast<char>(routes[i] >> 8));
  }
}

void Scheduler::DescribeEngine(journal::JobRecord* record) const {
  const engine::ModelConfig& config = engine_->config();
  auto& engine = *record->mutable_engine();
  engine["model"] = weights_.current().digest();
  engine["tokenizer"] = engine_->tokenizer().digest();
  engine["template"] = std::string(kTemplateVersion);
  engine["build"] = REPRISE_VERSION;
  engine["kv_dtype"] = "float32";
  engine["batch_invariant"] = "true";
  record->set_route_layers(static_cast<uint32_t>(config.num_layers));
  record->set_routes_per_token(static_cast<uint32_t>(config.experts_per_token));
  record->set_routes_are_u16(config.num_experts > kMaxByteExperts);
}

}  // namespace reprise::rollout
