// The one engine thread of a model: every step decodes all runnable trajectories together, the
// tokens of a step are one append to the log, and whatever leaves the process (a tool call, a
// reward, a sealed trajectory) waits until all that led to it is durable. Tools run on a pool; the
// engine never waits for one, and computes the next step while the last is being written.
//
// Life of a trajectory: admitted -> Advance() asks TrajectoryLogic -> decode | append | call |
// grade -> ... -> sealed and durable -> retired. After a restart it is the same, from a state that
// was folded from the log.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"
#include "replay/trajectory_log.h"
#include "rollout/guest.h"
#include "rollout/job_run.h"
#include "rollout/judge.h"
#include "rollout/kv_files.h"
#include "rollout/sandboxes.h"
#include "rollout/scheduler_metrics.h"
#include "rollout/tool_pool.h"
#include "rollout/trajectory.h"
#include "rollout/weight_table.h"

namespace reprise::rollout {

// Tokens of one sequence that one step feeds while it is being prefilled, and of all sequences
// together.
inline constexpr size_t kPrefillChunk = 256;
inline constexpr size_t kStepTokens = 2048;
// Steps whose tokens may be on their way to the disk while the next is computed.
inline constexpr int kCommitsAhead = 4;
inline constexpr int kToolThreads = 32;
// For reward commands, apart: slow verifiers hold up no tool.
inline constexpr int kGradeThreads = 32;
inline constexpr size_t kToolQueue = 65536;
// Most experts whose numbers fit one byte in a record.
inline constexpr int64_t kMaxByteExperts = 256;
// Guests that are decoded together; others wait for their turn, in order.
inline constexpr size_t kGuestsRunning = 64;

struct SchedulerOptions {
  std::string kv_dir;  // for KV states of paused and preempted trajectories; "": made again
  // Of the KV states of all sequences, counted as if they shared nothing; the prefix cache has a
  // bound of its own. Exceeded by at most what one step adds, or by one sequence that is larger. 0:
  // no bound.
  int64_t kv_bytes_max = 0;
};

class Scheduler {
 public:
  // `log` and `sandboxes` outlive this. `model`: the engine's directory as the daemon resolved it.
  Scheduler(std::unique_ptr<engine::Engine> engine, const std::string& model,
            replay::TrajectoryLog* log, Sandboxes* sandboxes, SchedulerOptions options);
  // Stops at a token boundary and waits for what is being written. REQUIRES: sandboxes->Shutdown()
  // was called, or no call is under way.
  ~Scheduler();

  // Weights by their version.
  using HeldWeights = std::map<uint64_t, WeightsPtr>;
  // Reads which weights the journal says are in force, and loads them. Once, before the first job.
  // Errors as WeightTable::Get.
  absl::Status Ready();
  // What the unfinished trajectories of a job need to go on: the weights of every part of their KV
  // states. FAILED_PRECONDITION, one line, when one of them is gone or another than it was.
  absl::StatusOr<HeldWeights> WeightsFor(JobRun* job);
  // Goes on with a job: its unfinished trajectories first, then those that never began. `weights`:
  // of WeightsFor. REQUIRES: Ready() was OK.
  void Add(std::shared_ptr<JobRun> job, HeldWeights weights);
  // What one state needs; the errors of WeightsFor.
  absl::StatusOr<HeldWeights> WeightsOf(const std::string& id,
                                        const replay::TrajectoryState& state);
  // Gives a job that this has one more trajectory, which it waits for from then on: its index.
  // nullopt when this does not have the job (any more). Waits for a step.
  std::optional<size_t> HoldForFork(const std::shared_ptr<JobRun>& job,
                                    const journal::TrajectoryStart& start);
  // Goes on with that trajectory, whose log is durable. False as above. Waits for a step.
  bool TakeFork(const std::shared_ptr<JobRun>& job, size_t index, replay::TrajectoryState state,
                const HeldWeights& weights);
  // The state of a job changed by request.
  void Wake();
  // Decodes for somebody outside of jobs, until it wants no more.
  void AddGuest(std::shared_ptr<Guest> guest);
  // Guests that are decoded, and that wait for their turn.
  int64_t guests_running() const { return guests_running_; }
  int64_t guests_waiting() const { return guests_waiting_; }
  const SchedulerMetrics& metrics() const { return metrics_; }

  // Puts the checkpoint record.directory in force between two steps, as version record.version or,
  // where that is 0, the next one: trajectories that begin are of it, and those that run go on or
  // drain as record.running and record.kv say, or else as their job says. Any thread; returns when
  // it is in force and in the journal. Errors as WeightTable::Add; then the old weights serve on.
  struct Update {
    journal::WeightsRecord record;
    uint32_t switched = 0;  // running trajectories that went on under it
    uint32_t draining = 0;  // that end under older versions
    uint32_t stale = 0;     // that were ended, being too old for their job
  };
  absl::StatusOr<Update> LoadWeights(journal::WeightsRecord record);
  const WeightTable& weights() const { return weights_; }
  // Stops all generation at a token boundary: once it returns no step runs, and none begins before
  // ContinueAll(). Tool calls go on; weights may be loaded. Any thread; not kept over a restart.
  void PauseAll();
  void ContinueAll();

  const std::string& log_engine_digest() const { return logic_.log_engine_digest(); }
  const engine::Tokenizer& tokenizer() const { return engine_->tokenizer(); }
  // What does not change while it is loaded; any thread.
  const engine::Engine& engine() const { return *engine_; }
  // Writes into a job's record what exported records say about the engine.
  void DescribeEngine(journal::JobRecord* record) const;

 private:
  struct Live;
  using LivePtr = std::shared_ptr<Live>;
  struct ActiveJob;
  struct Commit;
  struct Visit;
  using VisitPtr = std::shared_ptr<Visit>;

  void Loop();
  // Runs what other threads posted; waits for something when `wait`.
  void HandleEvents(bool wait);
  void Post(std::function<void()> event);

  // Runs `event` between two steps and waits for it.
  void RunBetweenSteps(const std::function<void()>& event);

  void Admit(ActiveJob* active);
  void Takeover(ActiveJob* active, size_t index, replay::TrajectoryState state,
                const HeldWeights& weights, bool resumed);
  void Advance(const LivePtr& live);
  void Write(const LivePtr& live, journal::TrajectoryEntry entry);
  void Flush();
  void OnCommitted(const std::shared_ptr<Commit>& commit, const absl::Status& status);
  bool Leave(const LivePtr& live);  // true when all is durable and the job may act outside
  void RunCall(const LivePtr& live, Action action);
  void OnCallAnswer(const LivePtr& live, const Action& action, absl::StatusOr<CallOutput> answer,
                    int64_t waited_us);
  void AskJudge(const LivePtr& live, Action action);
  void OnJudged(const LivePtr& live, journal::RewardDone done);
  void StopSandbox(const LivePtr& live);
  // Of a trajectory and of its reward command; logs what was not stopped.
  absl::Status StopBoxes(const Plan& plan);
  // Takes a trajectory out of flight once it is sealed, durable, and nothing of it is outside.
  void RetireIfDone(const LivePtr& live);
  void CancelJob(ActiveJob* active);
  // Ends the other samples of a group that is delivered to nobody.
  void DropGroup(const std::shared_ptr<JobRun>& job, size_t group);
  // Seals a trajectory that cannot or must not go on, whatever its sandbox is doing.
  void SealNow(const LivePtr& live, journal::TrajectoryEntry seal);
  void CheckJobs();
  void FailJob(const std::shared_ptr<JobRun>& job, const absl::Status& why);
  void FailAll(const absl::Status& why);

  // The newest weights are `record`: running trajectories go over to them as it says.
  void SwitchWeights(const journal::WeightsRecord& record, WeightsPtr weights, Update* update);
  enum class Crossing { kNone, kSwitched, kDraining, kStale };
  // Of one trajectory that an older version serves; what became of it.
  Crossing GoOver(const LivePtr& live);
  // The weights that feed the token at `position`, and the first position that others feed.
  absl::StatusOr<WeightsPtr> FeedingWeights(const LivePtr& live, size_t position, size_t* end);

  // Takes a trajectory of a paused job out of memory, and its sandbox off the processors.
  void Shelve(const LivePtr& live);
  void PauseSandbox(const LivePtr& live);
  // Moves its KV state to disk.
  void SaveKv(const LivePtr& live);
  // Reads the KV state back; it is busy until then.
  void Unshelve(const LivePtr& live);
  // FAILED_PRECONDITION or DATA_LOSS when the bytes are not the state of its tokens.
  absl::Status Restore(const LivePtr& live, const std::string& bytes);

  // Takes a trajectory in flight, behind those of its priority.
  void Enter(const LivePtr& live);
  // Bytes of KV states that the bound is about, as if they shared nothing: states that are shared
  // now part when they are written. Those on their way to the disk or back count.
  int64_t KvInUse() const;
  void Preempt(const LivePtr& live);
  // Before a step: what outgrew the bound leaves.
  void KeepBound();
  // Room for the state of one that has none in memory, made where lower priorities or waiting ones
  // have it. False: it waits.
  bool TakeRoom(const LivePtr& live);

  bool Runnable(const LivePtr& live) const;
  bool HasRunnable() const;
  void StepOnce();
  // Puts the grammar of the turn that it samples, if it has one, into its sampling parameters; made
  // of the log alone, so that it is the same after a restart. FAILED_PRECONDITION as
  // Engine::MasksFor.
  absl::Status Constrain(const LivePtr& live);
  // Empty, or with what the prefix cache has of its prompt.
  void BeginSequence(const LivePtr& live);
  void OnStepped(absl::Span<const engine::StepItem> items, const std::vector<LivePtr>& lives,
                 const std::vector<VisitPtr>& visits, int64_t step_us);
  void CountStep(absl::Span<const engine::StepItem> items, int64_t step_us);
  // Drops guests that want no more.
  void ReapGuests();
  void AddGuestItems(bool prefill, size_t* budget, std::vector<engine::StepItem>* items,
                     std::vector<VisitPtr>* visits);
  void OnGuestStepped(const VisitPtr& visit, const engine::StepItem& item);
  void FailGuests(const absl::Status& why);
  // Bytes of one token's routes in a record.
  size_t RouteBytes() const;
  // Adds the routes of a step's tokens but the first `skip`, one byte an expert where that is
  // enough.
  void PackRoutes(const std::vector<uint16_t>& routes, size_t skip, std::string* out) const;

  std::unique_ptr<engine::Engine> engine_;
  replay::TrajectoryLog* log_;
  Sandboxes* sandboxes_;
  TrajectoryLogic logic_;
  WeightTable weights_;
  const SchedulerOptions options_;
  const KvFiles kv_files_;
  absl::Mutex updating_;  // one LoadWeights at a time

  // Of the engine thread.
  journal::WeightsRecord current_;  // in force
  WeightsPtr current_weights_;
  bool paused_ = false;  // by PauseAll
  std::vector<std::unique_ptr<ActiveJob>> jobs_;  // by priority, then in the order of coming
  std::vector<LivePtr> lives_;  // by priority, then in the order of admission
  std::optional<int64_t> refused_;  // priority of one that the last step had no room for
  std::vector<replay::TrajectoryLog::Append> batch_;
  std::vector<LivePtr> touched_;
  std::vector<VisitPtr> visits_;  // in the order of arrival
  std::vector<std::shared_ptr<Guest>> touched_guests_;  // once for every OnSampled that logged
  int commits_ahead_ = 0;
  bool broken_ = false;  // the journal refused a write: nothing goes on

  std::atomic<int64_t> guests_running_{0}, guests_waiting_{0};
  SchedulerMetrics metrics_;

  absl::Mutex mutex_;
  std::deque<std::function<void()>> events_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  std::unique_ptr<ToolPool> pool_, grade_pool_;
  std::unique_ptr<Judge> judge_;
  std::thread thread_;
};

}  // namespace reprise::rollout
