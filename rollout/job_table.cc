#include "rollout/job_table.h"
#include "rollout/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "absl/cleanup/cleanup.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace reprise::rollout {

JobTable::JobTable(replay::TrajectoryLog* log, journal::Durability durability, Sandboxes* sandboxes,
                   engine::EngineOptions engine, SchedulerOptions options,
                   engine::ParallelOptions parallel)
    : log_(log),
      durability_(durability),
      sandboxes_(sandboxes),
      engine_options_(std::move(engine)),
      options_(std::move(options)),
      parallel_(std::move(parallel)) {}

absl::StatusOr<Scheduler*> JobTable::SchedulerLocked(const std::string& model_dir) {
  std::error_code error;
  std::string key = std::filesystem::canonical(model_dir, error).string();
  if (error) {
    return absl::NotFoundError(fmt::format("model {}: {}", model_dir, error.message()));
  }
  if (auto found = schedulers_.find(key); found != schedulers_.end()) return found->second.get();
  base::Stopwatch stopwatch;
  engine::EngineOptions options = engine_options_;
  if (!options.prefix_disk.directory.empty()) {
    std::string name = key;
    std::replace(name.begin(), name.end(), '/', '_');
    options.prefix_disk.directory += "/" + name;
  }
  ASSIGN_OR_RETURN(std::unique_ptr<engine::Engine> engine, engine::LoadParallel(key, options, parallel_));
  base::LogInfo(fmt::format("loaded {} in {:.0f} ms", key, stopwatch.ElapsedMillis()));
  auto made = std::make_unique<Scheduler>(std::move(engine), key, log_, sandboxes_, options_);
  return (schedulers_[key] = std::move(made)).get();
}

absl::StatusOr<Scheduler*> JobTable::Load(const std::string& model_dir) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(Scheduler * scheduler, SchedulerLocked(model_dir));
  RETURN_IF_ERROR(scheduler->Ready());
  return scheduler;
}

std::vector<std::pair<std::string, Scheduler*>> JobTable::Schedulers() {
  absl::MutexLock lock(&mutex_);
  std::vector<std::pair<std::string, Scheduler*>> out;
  for (const auto& [directory, scheduler] : schedulers_) out.emplace_back(directory, scheduler.get());
  return out;
}

absl::StatusOr<std::unique_ptr<JobSpec>> JobTable::SpecOf(const journal::JobRecord& record) const {
  ASSIGN_OR_RETURN(std::unique_ptr<JobSpec> spec,
                   LoadJob(record.spec_toml(), record.spec_dir(), "job file", record.job_id()));
  if (spec->digest != record.spec_digest()) {
    return absl::FailedPreconditionError(
        fmt::format("the task set or a tool definition changed since the job was submitted: bring "
                    "back {} as it "
                    "was, or submit the job under another id",
                    spec->tasks_path));
  }
  return spec;
}

absl::StatusOr<const engine::Tokenizer*> JobTable::TokenizerLocked(
    const std::string& model_dir, const journal::JobRecord& record) {
  auto wanted = record.engine().find("tokenizer");
  std::string digest = wanted == record.engine().end() ? "" : wanted->second;
  if (auto found = tokenizers_.find(digest); found != tokenizers_.end()) return found->second.get();
  std::string path = model_dir + "/tokenizer.json";
  ASSIGN_OR_RETURN(std::unique_ptr<engine::Tokenizer> tokenizer, engine::Tokenizer::Load(path));
  if (tokenizer->digest() != digest) {
    return absl::FailedPreconditionError(fmt::format(
        "{} changed since job {} was submitted: bring it back as it was", path, record.job_id()));
  }
  return (tokenizers_[digest] = std::move(tokenizer)).get();
}

absl::StatusOr<JobTable::Entry> JobTable::StartLocked(const journal::JobRecord& record) {
  ASSIGN_OR_RETURN(std::unique_ptr<JobSpec> spec, SpecOf(record));
  Entry entry{std::make_shared<JobRun>(std::move(spec), record), nullptr};
  entry.run->left_us = left_us_;
  RETURN_IF_ERROR(entry.run->ReadLogs(log_));
  if (record.state() == journal::JOB_STATE_CANCELLED && entry.run->AllSealed()) {
    ASSIGN_OR_RETURN(const engine::Tokenizer* tokenizer,
                     TokenizerLocked(entry.run->spec()->model_dir, record));
    entry.run->set_tokenizer(tokenizer);
    return entry;
  }
  ASSIGN_OR_RETURN(entry.scheduler, SchedulerLocked(entry.run->spec()->model_dir));
  RETURN_IF_ERROR(entry.scheduler->Ready());
  RETURN_IF_ERROR(entry.run->CheckEngine(entry.scheduler->log_engine_digest()));
  ASSIGN_OR_RETURN(Scheduler::HeldWeights weights, entry.scheduler->WeightsFor(entry.run.get()));
  entry.run->set_tokenizer(&entry.scheduler->tokenizer());
  size_t unfinished = entry.run->unfinished().size();
  if (unfinished > 0) {
    base::LogInfo(fmt::format("job {}: going on with {} unfinished trajectories", record.job_id(),
                              unfinished));
  }
  entry.scheduler->Add(entry.run, std::move(weights));
  return entry;
}

absl::StatusOr<std::shared_ptr<JobRun>> JobTable::ExternalLocked(const journal::JobRecord& record) {
  auto run = std::make_shared<JobRun>(record);
  ASSIGN_OR_RETURN(const engine::Tokenizer* tokenizer,
                   TokenizerLocked(record.external().model_dir(), record));
  run->set_tokenizer(tokenizer);
  RETURN_IF_ERROR(run->ReadLogs(log_));
  return run;
}

absl::StatusOr<std::shared_ptr<JobRun>> JobTable::External(const std::string& job_id,
                                                           const std::string& model_dir,
                                                           uint32_t group_size) {
  absl::MutexLock lock(&mutex_);
  auto known = FindLocked(job_id);
  if (known.ok()) {
    const std::shared_ptr<JobRun>& run = (*known)->run;
    const journal::JobRecord record = run->record();
    if (!run->external() || record.external().model_dir() != model_dir ||
        (group_size != 0 && record.external().group_size() != group_size)) {
      return absl::FailedPreconditionError(fmt::format(
          "job \"{}\" exists as another kind of job, or with another model or group size: name "
          "another",
          job_id));
    }
    return run;
  }
  if (!absl::IsNotFound(known.status())) return known.status();
  ASSIGN_OR_RETURN(Scheduler * scheduler, SchedulerLocked(model_dir));
  journal::JobRecord record;
  record.set_job_id(job_id);
  record.set_submitted_us(base::WallMicros());
  record.set_state(journal::JOB_STATE_RUNNING);
  record.set_durability(durability_);
  record.mutable_external()->set_model_dir(model_dir);
  record.mutable_external()->set_group_size(std::max(group_size, 1u));
  scheduler->DescribeEngine(&record);
  RETURN_IF_ERROR(log_->PutJob(record));
  ASSIGN_OR_RETURN(std::shared_ptr<JobRun> run, ExternalLocked(record));
  jobs_[job_id] = {run, nullptr};
  return run;
}

absl::StatusOr<std::shared_ptr<JobRun>> JobTable::ReadOnlyLocked(const journal::JobRecord& record) {
  if (record.has_external()) return ExternalLocked(record);
  auto spec = SpecOf(record);
  absl::StatusOr<const engine::Tokenizer*> tokenizer = nullptr;
  if (spec.ok()) {
    tokenizer = TokenizerLocked((*spec)->model_dir, record);
  } else {
    tokenizer = spec.status();
  }
  std::shared_ptr<JobRun> run;
  if (tokenizer.ok()) {
    run = std::make_shared<JobRun>(*std::move(spec), record);
    run->set_tokenizer(*tokenizer);
  } else {
    ASSIGN_OR_RETURN(std::vector<std::string> ids, log_->List(record.job_id()));
    run = std::make_shared<JobRun>(record, std::move(ids), tokenizer.status());
  }
  RETURN_IF_ERROR(run->ReadLogs(log_));
  run->unfinished().clear();
  return run;
}

absl::Status JobTable::ResumeAll(int64_t left_us) {
  absl::MutexLock lock(&mutex_);
  left_us_ = left_us;
  absl::Cleanup known_no_more = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { left_us_ = 0; };
  ASSIGN_OR_RETURN(std::vector<journal::JobRecord> records, log_->ListJobs());
  for (journal::JobRecord& record : records) {
    // Cancelled jobs may have died before all their trajectories were sealed.
    if (record.has_external()) continue;  // read when somebody asks for it
    bool running = record.state() == journal::JOB_STATE_RUNNING;
    if (!running && record.state() != journal::JOB_STATE_CANCELLED) continue;
    auto started = StartLocked(record);
    if (started.ok()) {
      jobs_[record.job_id()] = *std::move(started);
      continue;
    }
    if (!running) continue;
    base::LogError(
        fmt::format("job {} cannot go on: {}", record.job_id(), Message(started.status())));
    record.set_state(journal::JOB_STATE_FAILED);
    record.set_message(Message(started.status()));
    RETURN_IF_ERROR(log_->PutJob(record));
  }
  return absl::OkStatus();
}

absl::StatusOr<JobTable::Entry*> JobTable::FindLocked(const std::string& job_id) {
  if (auto found = jobs_.find(job_id); found != jobs_.end()) return &found->second;
  auto record = log_->GetJob(job_id);
  if (absl::IsNotFound(record.status())) {
    return absl::NotFoundError(fmt::format(
        "job \"{}\" is not known here, `reprise rollout ls` lists those that are", job_id));
  }
  RETURN_IF_ERROR(record.status());
  ASSIGN_OR_RETURN(std::shared_ptr<JobRun> run, ReadOnlyLocked(*record));
  return &(jobs_[job_id] = {std::move(run), nullptr});
}

absl::StatusOr<std::shared_ptr<JobRun>> JobTable::Submit(const std::string& toml,
                                                         const std::string& dir,
                                                         const std::string& job_id,
                                                         const std::string& name) {
  ASSIGN_OR_RETURN(std::unique_ptr<JobSpec> spec,
                   LoadJob(toml, dir, name.empty() ? "job file" : name, job_id));
  absl::MutexLock lock(&mutex_);
  auto known = FindLocked(spec->id);
  if (known.ok()) {
    if ((*known)->run->record().spec_digest() == spec->digest) return (*known)->run;
    return absl::FailedPreconditionError(fmt::format(
        "job \"{}\" exists with another job file, task set or tool definition: choose another id",
        spec->id));
  }
  if (!absl::IsNotFound(known.status())) return known.status();
  // A job whose model cannot load is not taken.
  ASSIGN_OR_RETURN(Scheduler * scheduler, SchedulerLocked(spec->model_dir));
  RETURN_IF_ERROR(scheduler->Ready());
  journal::JobRecord record;
  record.set_job_id(spec->id);
  record.set_spec_toml(toml);
  record.set_spec_dir(dir);
  record.set_spec_digest(spec->digest);
  record.set_submitted_us(base::WallMicros());
  record.set_state(journal::JOB_STATE_RUNNING);
  record.set_durability(durability_);
  scheduler->DescribeEngine(&record);
  RETURN_IF_ERROR(log_->PutJob(record));
  ASSIGN_OR_RETURN(Entry entry, StartLocked(record));
  jobs_[record.job_id()] = entry;
  return entry.run;
}

absl::StatusOr<std::shared_ptr<JobRun>> JobTable::Find(const std::string& job_id) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(Entry * entry, FindLocked(job_id));
  return entry->run;
}

absl::StatusOr<std::vector<std::shared_ptr<JobRun>>> JobTable::List() {
  ASSIGN_OR_RETURN(std::vector<journal::JobRecord> records, log_->ListJobs());
  std::vector<std::shared_ptr<JobRun>> out;
  for (const journal::JobRecord& record : records) {
    ASSIGN_OR_RETURN(std::shared_ptr<JobRun> run, Find(record.job_id()));
    out.push_back(std::move(run));
  }
  return out;
}

absl::Status JobTable::Pause(const std::string& job_id) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(Entry * entry, FindLocked(job_id));
  if (!entry->run->Is(journal::JOB_STATE_RUNNING)) {
    return absl::FailedPreconditionError(fmt::format("job {} is {}, only a running job is paused",
                                                     job_id, StateName(entry->run->state())));
  }
  RETURN_IF_ERROR(entry->run->SetState(log_, journal::JOB_STATE_PAUSED, ""));
  if (entry->scheduler != nullptr) entry->scheduler->Wake();
  return absl::OkStatus();
}

absl::Status JobTable::Resume(const std::string& job_id) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(Entry * entry, FindLocked(job_id));
  bool failed = entry->run->Is(journal::JOB_STATE_FAILED);
  RETURN_IF_ERROR(entry->run->SetState(log_, journal::JOB_STATE_RUNNING, ""));
  if (entry->run->external()) return absl::OkStatus();
  if (entry->scheduler != nullptr && !failed) {
    entry->scheduler->Wake();
    return absl::OkStatus();
  }
  auto started = StartLocked(entry->run->record());
  if (!started.ok()) {
    absl::Status written =
        entry->run->SetState(log_, journal::JOB_STATE_FAILED, Message(started.status()));
    return written.ok() ? started.status() : written;
  }
  *entry = *std::move(started);
  return absl::OkStatus();
}

void JobTable::OnAcknowledged(const std::string& job_id) {
  absl::MutexLock lock(&mutex_);
  auto found = jobs_.find(job_id);
  if (found != jobs_.end() && found->second.scheduler != nullptr) found->second.scheduler->Wake();
}

absl::Status JobTable::Cancel(const std::string& job_id) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(Entry * entry, FindLocked(job_id));
  if (entry->run->external()) {
    return absl::FailedPreconditionError(fmt::format(
        "agents outside drive job {}: finish its trajectories with POST /v1/trajectories/ID/finish",
        job_id));
  }
  bool failed = entry->run->Is(journal::JOB_STATE_FAILED);
  RETURN_IF_ERROR(entry->run->SetState(log_, journal::JOB_STATE_CANCELLED, ""));
  if (entry->scheduler != nullptr && !failed) {
    entry->scheduler->Wake();
    return absl::OkStatus();
  }
  // Nobody has it: take it up to seal what is unfinished, where its model and tasks are still
  // there.
  auto started = StartLocked(entry->run->record());
  if (started.ok()) *entry = *std::move(started);
  return absl::OkStatus();
}

absl::Status JobTable::AddFork(const std::string& job_id,
                               std::vector<journal::TrajectoryEntry> entries) {
  ASSIGN_OR_RETURN(replay::TrajectoryState folded, replay::Fold(entries));
  const std::string id = folded.start.trajectory_id();
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(Entry * entry, FindLocked(job_id));
  if (log_->Head(id).ok())
    return absl::AlreadyExistsError(fmt::format("there is a trajectory {} already", id));
  const std::shared_ptr<JobRun> run = entry->run;
  auto append = [&] {
    std::vector<replay::TrajectoryLog::Append> appends;
    for (journal::TrajectoryEntry& each : entries)
      appends.push_back({id, appends.size(), std::move(each)});
    return log_->AppendAll(std::move(appends));
  };
  if (entry->scheduler != nullptr &&
      (run->Is(journal::JOB_STATE_RUNNING) || run->Is(journal::JOB_STATE_PAUSED))) {
    ASSIGN_OR_RETURN(const Scheduler::HeldWeights weights, entry->scheduler->WeightsOf(id, folded));
    const std::optional<size_t> index = entry->scheduler->HoldForFork(run, folded.start);
    if (index.has_value()) {
      RETURN_IF_ERROR(append());
      // Where the job failed meanwhile, its resumption goes on with what is in the log.
      entry->scheduler->TakeFork(run, *index, std::move(folded), weights);
      return absl::OkStatus();
    }
  }
  // It has ended: first it runs again, then it has something to do. A death between the two ends it
  // once more.
  RETURN_IF_ERROR(run->Reopen(log_));
  base::FailPoint("fork.reopened");
  RETURN_IF_ERROR(append());
  base::FailPoint("fork.logged");
  auto started = StartLocked(run->record());
  if (!started.ok()) {
    absl::Status written =
        run->SetState(log_, journal::JOB_STATE_FAILED, Message(started.status()));
    return written.ok() ? started.status() : written;
  }
  *entry = *std::move(started);
  return absl::OkStatus();
}

absl::Status JobTable::Forget(const std::string& job_id) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(Entry * entry, FindLocked(job_id));
  const journal::JobState state = entry->run->state();
  if (state != journal::JOB_STATE_COMPLETED && state != journal::JOB_STATE_CANCELLED) {
    return absl::FailedPreconditionError(
        fmt::format("job {} is {}: it may go on", job_id, StateName(state)));
  }
  RETURN_IF_ERROR(log_->ForgetJob(job_id));
  jobs_.erase(job_id);
  return absl::OkStatus();
}

absl::StatusOr<Scheduler::Update> JobTable::LoadWeights(const std::string& model,
                                                        journal::WeightsRecord record) {
  Scheduler* scheduler = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    if (!model.empty()) {
      ASSIGN_OR_RETURN(scheduler, SchedulerLocked(model));
    } else if (schedulers_.size() == 1) {
      scheduler = schedulers_.begin()->second.get();
    } else {
      std::string loaded;
      for (const auto& [directory, each] : schedulers_) loaded += " " + directory;
      return absl::InvalidArgumentError(
          fmt::format("{} models are loaded, name the one that the weights are for:{}",
                      schedulers_.size(), loaded.empty() ? " its model directory" : loaded));
    }
  }
  return scheduler->LoadWeights(std::move(record));
}

absl::StatusOr<std::vector<journal::WeightsRecord>> JobTable::Weights(const std::string& model) {
  absl::MutexLock lock(&mutex_);
  std::vector<journal::WeightsRecord> out;
  if (!model.empty()) {
    ASSIGN_OR_RETURN(Scheduler * scheduler, SchedulerLocked(model));
    RETURN_IF_ERROR(scheduler->Ready());
    return scheduler->weights().All();
  }
  for (const auto& [directory, scheduler] : schedulers_) {
    for (journal::WeightsRecord& record : scheduler->weights().All()) {
      out.push_back(std::move(record));
    }
  }
  return out;
}

}  // namespace reprise::rollout
