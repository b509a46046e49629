// Every job of a rollout daemon by its id, and the engines that run them: one scheduler a model
// directory, loaded when its first job comes. Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"
#include "engine/parallel/parallel_engine.h"
#include "replay/trajectory_log.h"
#include "rollout/job_run.h"
#include "rollout/sandboxes.h"
#include "rollout/scheduler.h"

namespace reprise::rollout {

class JobTable {
 public:
  // `log` and `sandboxes` outlive this. `engine`, `options` and `parallel`: of every model; each has a
  // directory of its own below that of the prefix cache on disk.
  JobTable(replay::TrajectoryLog* log, journal::Durability durability, Sandboxes* sandboxes,
           engine::EngineOptions engine, SchedulerOptions options,
           engine::ParallelOptions parallel = {});

  // Goes on with every unfinished job. `left_us`: when the process before this one wrote its last
  // entry, wall clock; 0 = not known. A job that cannot go on becomes FAILED with the reason; only an
  // unreadable log is an error.
  absl::Status ResumeAll(int64_t left_us = 0);

  // Idempotent by id and content. INVALID_ARGUMENT from the job file; FAILED_PRECONDITION when the
  // id stands for another content. `name` stands for the job file in errors; "" = "job file".
  absl::StatusOr<std::shared_ptr<JobRun>> Submit(const std::string& toml, const std::string& dir,
                                                 const std::string& job_id,
                                                 const std::string& name);
  absl::StatusOr<std::shared_ptr<JobRun>> Find(const std::string& job_id);
  absl::StatusOr<std::vector<std::shared_ptr<JobRun>>> List();
  absl::Status Pause(const std::string& job_id);
  // Also takes up a failed job again, once its cause is gone.
  absl::Status Resume(const std::string& job_id);
  absl::Status Cancel(const std::string& job_id);
  // Groups of a job were acknowledged: it may begin others.
  void OnAcknowledged(const std::string& job_id);
  // Takes one more trajectory of a job, whose log begins with `entries`: durable on return, and the
  // job goes on with it; one that is completed runs again. FAILED_PRECONDITION for a job in another
  // state than running, paused or completed; ALREADY_EXISTS.
  absl::Status AddFork(const std::string& job_id, std::vector<journal::TrajectoryEntry> entries);
  // Forgets a job that has ended and whose trajectories are all dropped: its id may be used again.
  // FAILED_PRECONDITION for any other.
  absl::Status Forget(const std::string& job_id);
  // The job that agents outside drive under this id, made when there is none. `group_size`: 0 = what
  // it has, or 1. FAILED_PRECONDITION
  // when the id stands for another kind of job, another model or another group size.
  absl::StatusOr<std::shared_ptr<JobRun>> External(const std::string& job_id,
                                                   const std::string& model_dir,
                                                   uint32_t group_size);
  // The scheduler of a model directory, loaded when nobody needed it before; lives as long as this.
  absl::StatusOr<Scheduler*> Load(const std::string& model_dir);
  // Those that are loaded, by directory.
  std::vector<std::pair<std::string, Scheduler*>> Schedulers();

  // Scheduler::LoadWeights of the model whose directory is `model`, or of the only loaded one when
  // it is empty. INVALID_ARGUMENT when that is not one.
  absl::StatusOr<Scheduler::Update> LoadWeights(const std::string& model,
                                                journal::WeightsRecord record);
  // Versions of that model, or of all loaded ones when `model` is empty; by model and version.
  absl::StatusOr<std::vector<journal::WeightsRecord>> Weights(const std::string& model);

 private:
  struct Entry {
    std::shared_ptr<JobRun> run;
    Scheduler* scheduler = nullptr;  // set once the scheduler has the job
  };

  absl::StatusOr<Entry*> FindLocked(const std::string& job_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Scheduler*> SchedulerLocked(const std::string& model_dir)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Reads the job of a record again and hands it to its scheduler.
  absl::StatusOr<Entry> StartLocked(const journal::JobRecord& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The job of an external record, as its logs tell.
  absl::StatusOr<std::shared_ptr<JobRun>> ExternalLocked(const journal::JobRecord& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A job that nobody runs: as submitted where its files still are what they were, else its logs
  // alone.
  absl::StatusOr<std::shared_ptr<JobRun>> ReadOnlyLocked(const journal::JobRecord& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The job as it was submitted. FAILED_PRECONDITION when its task set or a tool definition
  // changed.
  absl::StatusOr<std::unique_ptr<JobSpec>> SpecOf(const journal::JobRecord& record) const;
  // The tokenizer that the job's tokens were made with, without loading its model.
  absl::StatusOr<const engine::Tokenizer*> TokenizerLocked(const std::string& model_dir,
                                                           const journal::JobRecord& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  replay::TrajectoryLog* const log_;
  const journal::Durability durability_;
  Sandboxes* const sandboxes_;
  const engine::EngineOptions engine_options_;
  const SchedulerOptions options_;
  const engine::ParallelOptions parallel_;

  absl::Mutex mutex_;
  int64_t left_us_ ABSL_GUARDED_BY(mutex_) = 0;  // while ResumeAll runs
  std::map<std::string, Entry> jobs_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::unique_ptr<Scheduler>> schedulers_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::unique_ptr<engine::Tokenizer>> tokenizers_
      ABSL_GUARDED_BY(mutex_);  // by digest
};

}  // namespace reprise::rollout
