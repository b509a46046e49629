#include "rollout/scheduler.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "rollout/identity.h"
#include "rollout/scheduler_parts.h"
#include "rollout/text.h"

namespace reprise::rollout {

namespace {

engine::SamplingParams SamplingOf(const Plan& plan) {
  return {.temperature = plan.job->temperature,
          .top_p = plan.job->top_p,
          .seed = plan.seed,
          .top_k = plan.job->top_k,
          .min_p = plan.job->min_p,
          .kept_max = plan.job->kept_ids};
}

// Of a trajectory that has a log, which begins with `start`.
Plan PlanOf(const JobRun& job, size_t index, const journal::TrajectoryStart& start) {
  Plan plan = MakePlan(*job.spec(), job.place_of(index), job.attempt(index));
  if (start.has_fork()) {
    plan.id = start.trajectory_id();
    plan.seed = start.seed();
  }
  return plan;
}

}  // namespace

Scheduler::Scheduler(std::unique_ptr<engine::Engine> engine, const std::string& model,
                     replay::TrajectoryLog* log, Sandboxes* sandboxes, SchedulerOptions options)
    : engine_(std::move(engine)),
      log_(log),
      sandboxes_(sandboxes),
      logic_(&engine_->tokenizer(), engine_->eos_id(), engine_->max_context(),
             LogEngineDigest(engine_->digest())),
      weights_(engine_.get(), log, model),
      options_(std::move(options)),
      kv_files_(options_.kv_dir),
      pool_(std::make_unique<ToolPool>(kToolThreads, kToolQueue)),
      grade_pool_(std::make_unique<ToolPool>(kGradeThreads, kToolQueue)),
      judge_(std::make_unique<Judge>()),
      thread_([this] { Loop(); }) {}

Scheduler::~Scheduler() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  // The engine thread first: it may still hand tasks to the pool.
  thread_.join();
  judge_.reset();
  grade_pool_.reset();
  pool_.reset();
}

void Scheduler::Post(std::function<void()> event) {
  absl::MutexLock lock(&mutex_);
  events_.push_back(std::move(event));
}

void Scheduler::Add(std::shared_ptr<JobRun> job, HeldWeights weights) {
  Post([this, job = std::move(job), weights = std::move(weights)] {
    if (broken_) {
      return FailJob(job,
                     absl::UnavailableError("the journal takes no more writes, restart rolloutd"));
    }
    auto active = std::make_unique<ActiveJob>();
    active->job = job;
    active->added_us = base::MonotonicMicros();
    auto unfinished = std::move(job->unfinished());
    job->unfinished().clear();
    for (auto& [index, state] : unfinished) {
      Takeover(active.get(), index, std::move(state), weights, /*resumed=*/true);
    }
    const auto after = std::find_if(jobs_.begin(), jobs_.end(), [&](const auto& other) {
      return other->job->spec()->priority < active->job->spec()->priority;
    });
    jobs_.insert(after, std::move(active));
  });
}

void Scheduler::Wake() {
  Post([this] {
    std::vector<LivePtr> lives = lives_;
    for (const LivePtr& live : lives) {
      if (!live->runnable) Advance(live);
      if (live->job->Is(journal::JOB_STATE_PAUSED)) Shelve(live);
    }
  });
}

void Scheduler::Loop() {
  while (true) {
    bool idle = !HasRunnable() || commits_ahead_ >= kCommitsAhead;
    HandleEvents(idle && batch_.empty());
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) break;
    }
    if (broken_) continue;
    for (size_t i = 0; i < jobs_.size(); ++i) Admit(jobs_[i].get());
    if (commits_ahead_ < kCommitsAhead && HasRunnable()) StepOnce();
    Flush();
    CheckJobs();
  }
  // What is on its way to the disk arrives before the log goes away.
  Flush();
  while (commits_ahead_ > 0) HandleEvents(true);
  HandleEvents(false);
  FailGuests(absl::UnavailableError("rolloutd is stopping"));
}

void Scheduler::HandleEvents(bool wait) {
  std::deque<std::function<void()>> events;
  bool written = commits_ahead_ == 0;
  {
    absl::MutexLock lock(&mutex_);
    auto something = [this, written] {
      mutex_.AssertReaderHeld();
      return !events_.empty() || (stopping_ && written);
    };
    if (wait) mutex_.Await(absl::Condition(&something));
    events.swap(events_);
  }
  for (auto& event : events) event();
}

void Scheduler::Takeover(ActiveJob* active, size_t index, replay::TrajectoryState state,
                         const HeldWeights& weights, bool resumed) {
  auto live = std::make_shared<Live>();
  live->job = active->job;
  live->index = index;
  live->plan = PlanOf(*active->job, index, state.start);
  live->state = std::move(state);
  live->durable = live->state.entries;
  live->logged = live->state.tokens.size();
  live->kv_on_disk = kv_files_.Has(live->plan.id);
  live->may_have_sandbox = !live->state.calls.empty() || live->state.reward.has_value();
  live->sampling = SamplingOf(live->plan);
  Enter(live);
  ++active->in_flight;
  if (resumed) {
    ++active->job->resumed;
    journal::TrajectoryEntry entry;
    journal::Resumed* mark = entry.mutable_resumed();
    mark->set_at_token(live->state.tokens.size());
    mark->set_cause("restart");
    mark->set_prefill_tokens(live->state.tokens.size());
    mark->set_resumed_us(base::WallMicros());
    if (live->job->left_us > 0)
      mark->set_gap_us(std::max<int64_t>(mark->resumed_us() - live->job->left_us, 0));
    Write(live, std::move(entry));
  }
  for (const replay::KvSpan& span : live->state.kv_spans) {
    if (auto held = weights.find(span.version); held != weights.end()) live->weights.insert(*held);
  }
  GoOver(live);
  if (active->cancel_seen) {
    SealNow(live, SealEntry("aborted", "", "", "cancelled by request"));
  } else if (live->job->IsDropped(live->job->position_of(index))) {
    SealNow(live, DroppedEntry());
  }
  Advance(live);
}

std::optional<size_t> Scheduler::HoldForFork(const std::shared_ptr<JobRun>& job,
                                             const journal::TrajectoryStart& start) {
  std::optional<size_t> index;
  RunBetweenSteps([&] {
    for (const auto& active : jobs_) {
      if (active->job == job && !broken_) index = job->AddFork(start);
    }
  });
  return index;
}

bool Scheduler::TakeFork(const std::shared_ptr<JobRun>& job, size_t index,
                         replay::TrajectoryState state, const HeldWeights& weights) {
  bool taken = false;
  RunBetweenSteps([&] {
    for (const auto& active : jobs_) {
      if (active->job != job || broken_) continue;
      job->Update(index, Summarize(state));
      Takeover(active.get(), index, std::move(state), weights, /*resumed=*/false);
      taken = true;
      return;
    }
  });
  return taken;
}

void Scheduler::Admit(ActiveJob* active) {
  JobRun* job = active->job.get();
  if (job->Is(journal::JOB_STATE_CANCELLED)) CancelJob(active);
  bool cancelled = active->cancel_seen;
  if (!cancelled && !job->Is(journal::JOB_STATE_RUNNING)) return;
  const JobSpec& spec = *job->spec();
  // Others wait for room already.
  if (!cancelled && refused_.has_value() && *refused_ >= spec.priority) return;
  size_t room = static_cast<size_t>(spec.max_in_flight);
  bool held = false;
  while (active->in_flight < room) {
    size_t index = 0;
    if (!active->again.empty()) {
      index = active->again.front();
      active->again.pop_front();
    } else if (active->next < spec.trajectories()) {
      const size_t begun = active->next / spec.group_size;
      held = spec.max_unacknowledged > 0 && active->next % spec.group_size == 0 && !cancelled &&
             begun >= job->settled_groups() + static_cast<size_t>(spec.max_unacknowledged);
      if (held) break;
      index = active->next++;
    } else {
      break;
    }
    Plan plan = MakePlan(spec, index, job->attempt(index));
    if (job->summary(index).sealed) continue;
    bool taken = std::any_of(lives_.begin(), lives_.end(), [&](const LivePtr& live) {
      return live->job.get() == job && live->index == index;
    });
    if (taken) continue;
    auto start = logic_.Begin(plan);
    if (!start.ok()) return FailJob(active->job, start.status());
    start->mutable_start()->set_started_us(base::WallMicros());
    start->mutable_start()->set_weight_version(current_.version());
    start->mutable_start()->set_engine_digest(LogEngineDigest(current_.digest()));
    auto live = std::make_shared<Live>();
    live->job = active->job;
    live->index = index;
    live->plan = std::move(plan);
    live->weights[current_.version()] = current_weights_;
    live->sampling = SamplingOf(live->plan);
    live->timing.set_queue_us(base::MonotonicMicros() - active->added_us);
    Enter(live);
    ++active->in_flight;
    Write(live, *std::move(start));
    if (cancelled) {
      SealNow(live, SealEntry("aborted", "", "", "cancelled by request"));
    } else if (job->IsDropped(index / spec.group_size)) {
      SealNow(live, DroppedEntry());
    }
    Advance(live);
  }
  job->waits_for_trainer = held;
}

void Scheduler::Advance(const LivePtr& live) {
  live->runnable = false;
  while (!live->dead && !live->outside) {
    Action action = logic_.Next(live->plan, live->state);
    switch (action.kind) {
      case Action::Kind::kDecode:
        live->runnable = true;
        return;
      case Action::Kind::kAppend:
        // The sandbox goes before the seal does, so that a crash between the two stops it again.
        if (action.entries[0].has_sealed() && live->may_have_sandbox && !live->sandbox_stopped) {
          if (Leave(live)) StopSandbox(live);
          return;
        }
        for (journal::TrajectoryEntry& entry : action.entries) Write(live, std::move(entry));
        break;
      case Action::Kind::kCall:
      case Action::Kind::kGrade:
        if (Leave(live)) RunCall(live, std::move(action));
        return;
      case Action::Kind::kJudge:
        if (Leave(live)) AskJudge(live, std::move(action));
        return;
      case Action::Kind::kDone:
        live->sequence.reset();
        return;
    }
  }
}

bool Scheduler::Leave(const LivePtr& live) {
  return live->durable == live->state.entries && live->job->Is(journal::JOB_STATE_RUNNING);
}

void Scheduler::Write(const LivePtr& live, journal::TrajectoryEntry entry) {
  if (live->dead) return;
  if (entry.has_sealed()) {
    journal::Sealed* sealed = entry.mutable_sealed();
    sealed->set_sealed_us(base::WallMicros());
    live->timing.set_total_us(sealed->sealed_us() - live->state.start.started_us());
    *sealed->mutable_timing() = live->timing;
    sealed->set_digest(replay::TrajectoryDigest(live->state));
  }
  uint64_t index = live->state.entries;
  if (absl::Status status = live->state.Apply(entry); !status.ok()) {
    FailJob(live->job,
            absl::InternalError(fmt::format("trajectory {}: {}", live->plan.id, Message(status))));
    return;
  }
  batch_.push_back({live->plan.id, index, std::move(entry)});
  if (!live->touched) {
    live->touched = true;
    touched_.push_back(live);
  }
}

void Scheduler::Flush() {
  if (batch_.empty()) return;
  auto commit = std::make_shared<Commit>();
  for (const LivePtr& live : touched_) {
    live->touched = false;
    commit->lives.emplace_back(live, live->state.entries);
    Summary summary = Summarize(live->state);
    live->job->Update(live->index, std::move(summary));
  }
  touched_.clear();
  commit->guests = std::exchange(touched_guests_, {});
  metrics_.entries.Add(batch_.size());
  ++commits_ahead_;
  log_->AppendAsync(std::exchange(batch_, {}), [this, commit](absl::Status status) {
    Post([this, commit, status] { OnCommitted(commit, status); });
  });
}

void Scheduler::OnCommitted(const std::shared_ptr<Commit>& commit, const absl::Status& status) {
  --commits_ahead_;
  if (!status.ok()) {
    for (const auto& guest : commit->guests) guest->OnFailed(status);
    return FailAll(status);
  }
  metrics_.commits.Add();
  metrics_.commit_seconds.Observe(static_cast<double>(commit->began.ElapsedMicros()) / 1e6);
  for (const auto& guest : commit->guests) guest->OnDurable();
  for (const auto& [live, entries] : commit->lives) {
    live->durable = entries;
    if (live->dead || live->runnable || live->outside) continue;
    Advance(live);
    RetireIfDone(live);
  }
}

void Scheduler::RetireIfDone(const LivePtr& live) {
  if (live->dead || live->outside || !live->state.sealed) return;
  if (live->durable < live->state.entries) return;
  base::FailPoint("trajectory.sealed");
  const JobRun::After after = live->job->Seal(live->index, Summarize(live->state));
  if (after != JobRun::After::kStands) base::FailPoint("trajectory.invalid");
  live->dead = true;
  if (live->kv_on_disk) kv_files_.Remove(live->plan.id);
  lives_.erase(std::find(lives_.begin(), lives_.end(), live));
  for (auto& active : jobs_) {
    if (active->job != live->job) continue;
    --active->in_flight;
    if (after == JobRun::After::kReplaced) active->again.push_back(live->index);
  }
  if (after == JobRun::After::kDropsItsGroup)
    DropGroup(live->job, live->job->position_of(live->index));
}

void Scheduler::RunCall(const LivePtr& live, Action action) {
  live->outside = true;
  live->may_have_sandbox = true;
  base::FailPoint("rollout.call.before");
  ToolPool& pool = action.kind == Action::Kind::kGrade ? *grade_pool_ : *pool_;
  pool.Run([this, live, action = std::move(action), fork = live->state.start.fork()] {
    base::Stopwatch stopwatch;
    absl::Status made;
    const auto& judging = live->plan.task->reward.sandbox;
    if (action.kind == Action::Kind::kGrade && judging) {
      made = sandboxes_->Create(action.request.sandbox_id(), *judging);
    } else if (!live->has_sandbox && !fork.last_call_id().empty()) {
      made = sandboxes_->Fork(fork.sandbox_id(), action.request.sandbox_id(), fork.last_call_id());
      live->has_sandbox = made.ok();
    } else if (!live->has_sandbox) {
      made = sandboxes_->Create(action.request.sandbox_id(), live->plan.task->sandbox);
      live->has_sandbox = made.ok();
    }
    absl::StatusOr<CallOutput> answer = CallOutput();
    if (made.ok()) {
      answer = sandboxes_->Execute(action.request);
    } else {
      answer = made;
    }
    Post([this, live, action, answer = std::move(answer), waited = stopwatch.ElapsedMicros()] {
      OnCallAnswer(live, action, answer, waited);
    });
  });
}

void Scheduler::OnCallAnswer(const LivePtr& live, const Action& action,
                             absl::StatusOr<CallOutput> answer, int64_t waited_us) {
  live->outside = false;
  base::FailPoint("rollout.call.after");
  if (live->dead) return;
  if (live->state.sealed) {
    Advance(live);
    return RetireIfDone(live);
  }
  if (answer.ok()) {
    metrics_.calls[static_cast<size_t>(answer->result.outcome()) % kOutcomesMax].Add();
    if (answer->result.replayed()) metrics_.replayed_calls.Add();
  }
  if (absl::IsCancelled(answer.status())) return;  // shutting down: asked again after the restart
  bool grade = action.kind == Action::Kind::kGrade;
  if (grade) {
    live->timing.set_grade_us(live->timing.grade_us() + waited_us);
  } else {
    live->timing.set_tool_us(live->timing.tool_us() + waited_us);
  }
  if (!answer.ok()) {
    base::LogWarn(fmt::format("{}: {}", action.request.call_id(), Message(answer.status())));
    SealNow(live, SealEntry("failed", "", "infra",
                            fmt::format("call {}: {}", action.request.call_id(),
                                        Message(answer.status()))));
  } else if (grade) {
    Write(live, logic_.OnGrade(*answer));
  } else {
    Write(live, logic_.OnCall(live->plan, action.request.call_id(), *answer));
  }
  Advance(live);
  // It was paused while the call ran.
  if (live->job->Is(journal::JOB_STATE_PAUSED)) Shelve(live);
}

void Scheduler::AskJudge(const LivePtr& live, Action action) {
  live->outside = true;
  base::FailPoint("rollout.judge.before");
  judge_->Ask({live->plan.task->reward.http, RewardCallId(live->plan.id),
               std::move(action.judge_body)},
              [this, live](journal::RewardDone done) {
                Post([this, live, done = std::move(done)] { OnJudged(live, done); });
              });
}

void Scheduler::OnJudged(const LivePtr& live, journal::RewardDone done) {
  live->outside = false;
  base::FailPoint("rollout.judge.after");
  metrics_.judgements[done.has_value() ? 1 : 0].Add();
  if (live->dead) return;
  if (!live->state.sealed) {
    live->timing.set_grade_us(live->timing.grade_us() + done.duration_us());
    if (!done.has_value()) {
      base::LogWarn(fmt::format("{} has no reward: {}", live->plan.id, done.failure()));
    }
    Write(live, TrajectoryLogic::OnJudge(std::move(done)));
  }
  Advance(live);
  RetireIfDone(live);
  if (live->job->Is(journal::JOB_STATE_PAUSED)) Shelve(live);
}

absl::Status Scheduler::StopBoxes(const Plan& plan) {
  absl::Status stopped = sandboxes_->Stop(SandboxId(plan.id));
  if (plan.task->reward.sandbox && !absl::IsCancelled(stopped)) {
    absl::Status other = sandboxes_->Stop(JudgeSandboxId(plan.id));
    if (stopped.ok() || absl::IsNotFound(stopped)) stopped = other;
  }
  if (!stopped.ok() && !absl::IsNotFound(stopped) && !absl::IsCancelled(stopped)) {
    base::LogWarn(fmt::format("sandbox of {} was not stopped: {}", plan.id, Message(stopped)));
  }
  return stopped;
}

void Scheduler::StopSandbox(const LivePtr& live) {
  live->outside = true;
  pool_->Run([this, live] {
    absl::Status stopped = StopBoxes(live->plan);
    Post([this, live, cancelled = absl::IsCancelled(stopped)] {
      live->outside = false;
      live->sandbox_stopped = !cancelled;
      if (!cancelled) Advance(live);
    });
  });
}

}  // namespace reprise::rollout
