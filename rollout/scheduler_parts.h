// Private to the scheduler: a trajectory in flight, a job in flight, a write under way.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "rollout/scheduler.h"

namespace reprise::rollout {

struct Scheduler::Live {
  std::shared_ptr<JobRun> job;
  size_t index = 0;
  Plan plan;
  replay::TrajectoryState state;
  std::unique_ptr<engine::Sequence> sequence;
  HeldWeights weights;  // of its KV state's parts, as far as it still needs them
  engine::SamplingParams sampling;
  uint64_t durable = 0;           // entries of the log that are
  uint64_t logged = 0;            // tokens that the log had when this process took over
  std::string routes;             // packed, of tokens fed since the last sampled one
  bool runnable = false;          // the next step may decode it
  bool touched = false;           // has entries in the batch that is being collected
  bool outside = false;           // a call, a reward or a stop is under way on the pool
  bool kv_busy = false;           // its KV state is on its way to the disk or back
  bool kv_on_disk = false;        // and not in memory
  bool has_sandbox = false;       // Create succeeded; written on the pool while `outside`
  bool may_have_sandbox = false;  // this or an earlier process may have made one
  bool sandbox_stopped = false;
  bool dead = false;  // its job failed, or it is retired: answers are dropped
  journal::Timing timing;

  int64_t priority() const { return job->spec()->priority; }
  // Tokens whose experts are known, from the first on.
  size_t routed(size_t bytes_each) const {
    return (state.routed_experts.size() + routes.size()) / bytes_each;
  }
};

struct Scheduler::ActiveJob {
  std::shared_ptr<JobRun> job;
  size_t next = 0;  // first index that was not looked at
  std::deque<size_t> again;  // indices whose samples a fresh attempt is to stand for
  size_t in_flight = 0;
  int64_t added_us = 0;  // monotonic
  bool cancel_seen = false;
};

// A guest, and its sequence once it runs.
struct Scheduler::Visit {
  std::shared_ptr<Guest> guest;
  std::unique_ptr<engine::Sequence> sequence;
  bool begun = false;
};

struct Scheduler::Commit {
  std::vector<std::pair<LivePtr, uint64_t>> lives;  // with the length of the log after it
  std::vector<std::shared_ptr<Guest>> guests;
  base::Stopwatch began;
};

}  // namespace reprise::rollout
