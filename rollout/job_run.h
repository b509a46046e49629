// A job in this process: its record, what each of its trajectories has come to, and who waits for
// changes. The scheduler writes, the service reads. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/tokenizer.h"
#include "replay/trajectory_log.h"
#include "replay/trajectory_state.h"
#include "reprise/rollout/v1/rollout.pb.h"
#include "rollout/job.h"

namespace reprise::rollout {

namespace journal = ::reprise::journal::v1;
namespace wire = ::reprise::rollout::v1;

// One trajectory in numbers.
struct Summary {
  std::string task_id, status, stop_reason;
  uint64_t tokens = 0, sampled = 0, prompt = 0;
  uint32_t calls = 0;
  bool has_reward = false;
  float reward = 0;
  bool failed = false;  // sealed without a valid result
  bool valid = true, retriable = false;  // once sealed, as of replay::IsValid and IsRetriable
  bool sealed = false;  // and durable
  int64_t sealed_us = 0;
  bool dropped = false;   // its log is gone by the retention policy
  std::string parent_id;  // of a fork
  uint32_t at_step = 0;   // likewise: assistant turns that both have
};
Summary Summarize(const replay::TrajectoryState& state);
// As the head of a compacted trajectory has it, and back.
journal::TrajectorySummary ToRecord(const replay::TrajectoryState& state);
Summary FromHead(const journal::TrajectoryHead& head);

// "running", "paused", ...
std::string StateName(journal::JobState state);

class JobRun {
 public:
  // A job that can run; `spec` is what its record says.
  JobRun(std::unique_ptr<JobSpec> spec, journal::JobRecord record);
  // A job that is only read because its files are not what they were: its trajectories are those in
  // the log, and `why` says what exported records miss.
  JobRun(journal::JobRecord record, std::vector<std::string> trajectory_ids, absl::Status why);
  // A job that agents outside drive: begins empty, and grows. REQUIRES: record.has_external().
  explicit JobRun(journal::JobRecord record);

  // Reads the logs of all trajectories: summaries, and the states of those that are unfinished.
  // REQUIRES: before the job is shared. DATA_LOSS from the log.
  absl::Status ReadLogs(replay::TrajectoryLog* log);
  // FAILED_PRECONDITION when an unfinished trajectory needs the model directory's own weights, and
  // was begun with another engine.
  absl::Status CheckEngine(const std::string& log_engine_digest) const;

  const std::string& id() const { return id_; }
  const JobSpec* spec() const { return spec_.get(); }  // nullptr for a job that is only read
  const absl::Status& why_no_spec() const { return why_no_spec_; }
  // Of the model, for text in exported records; outlives this. Set before the job is shared;
  // nullptr without a spec.
  const engine::Tokenizer* tokenizer() const { return tokenizer_; }
  void set_tokenizer(const engine::Tokenizer* tokenizer) { tokenizer_ = tokenizer; }
  bool external() const { return external_; }

  // Trajectories, by index: group-major. Behind these places come forks, up to all().
  size_t size() const;
  size_t all() const;
  std::string trajectory_id(size_t index) const;
  size_t place_of(size_t index) const;  // the sample that a fork branched at; else the index
  // That of a trajectory, or of the one that it branched from. REQUIRES: spec() is there and has the
  // start's group.
  size_t PlaceOf(const journal::TrajectoryStart& start) const;
  size_t position_of(size_t index) const { return place_of(index) / group_size_; }  // its group's
  // What a fork becomes as one of this job's, not sealed; returns its index.
  size_t AddFork(const journal::TrajectoryStart& start);
  uint32_t NextForkNumber(size_t place) const;  // above those that were added
  // The trajectory at a place is sealed, with all its forks.
  bool IsWhole(size_t place) const;
  // The logs that are its records: its own, one for each branch of an external trajectory, and
  // those of its forks.
  std::vector<std::string> record_ids(size_t index) const;
  size_t groups() const;
  uint32_t group_size() const { return group_size_; }
  uint32_t group_at(size_t position) const;  // ordinal; position: 0..groups()-1

  // The place of a trajectory of an external job, which gets one if it has none.
  // FAILED_PRECONDITION when its group is full, or when the name belongs to another group.
  absl::StatusOr<size_t> Place(const std::string& group, const std::string& name);
  // Its place if it has one.
  std::optional<size_t> Find(const std::string& name) const;
  // One more branch of an external trajectory: the id of its log, and its number.
  std::pair<std::string, uint32_t> AddBranch(size_t index);

  // Unfinished trajectories that have a log, by index. The scheduler takes them; nobody else
  // touches it.
  std::map<size_t, replay::TrajectoryState>& unfinished() { return unfinished_; }

  journal::JobRecord record() const;
  journal::JobState state() const;
  bool Is(journal::JobState state) const { return this->state() == state; }
  // Writes the new state durably, then shows it. On a journal error only a failure is shown.
  // FAILED_PRECONDITION for a job that has ended, or that is already in that state.
  absl::Status SetState(replay::TrajectoryLog* log, journal::JobState state,
                        const std::string& message);
  // Makes a completed job a running one again, because it gets another trajectory.
  absl::Status Reopen(replay::TrajectoryLog* log);

  void Update(size_t index, Summary summary);
  Summary summary(size_t index) const;
  bool IsSealed(size_t index) const;  // summary(index).sealed
  // The log of the trajectory at `index` is gone by the retention policy.
  void Dropped(size_t index);
  // The trajectory at `index` is sealed and durable, and `summary` is of it. What follows is a
  // function of the logs alone, so that a restart comes to the same.
  enum class After {
    kStands,        // it is the sample
    kReplaced,      // its place is free for the next attempt
    kDropsItsGroup  // it stands, and its group is delivered to nobody
  };
  After Seal(size_t index, Summary summary);
  uint32_t attempt(size_t index) const;  // that the place is for now
  bool IsDropped(size_t position) const;  // a group
  // The rewards of a group's valid samples; empty while it is not whole, or when it is dropped.
  std::vector<std::optional<float>> GroupRewards(size_t position) const;
  // The logs of earlier attempts at a sample.
  std::vector<std::string> replaced_ids(size_t index) const;
  bool AllSealed() const;

  wire::Job ToProto() const;
  // A number that grows with every change, and waiting for it to be more than `seen`. False at the
  // deadline.
  uint64_t version() const;
  bool WaitChange(uint64_t seen, absl::Duration timeout) const;

  // Groups that need nobody's attention any more: acknowledged or dropped. `NoteAcknowledged` counts
  // them beside the journal, which says which they are.
  size_t settled_groups() const;
  void NoteAcknowledged(size_t groups) const { acknowledged_ += groups; }
  // No further group is begun until the trainer acknowledges one.
  std::atomic<bool> waits_for_trainer{false};

  // When the process that had its unfinished trajectories wrote last, wall clock; 0 = not known.
  // Set before the job is shared.
  int64_t left_us = 0;

  // What this process did.
  std::atomic<uint64_t> decoded{0}, decoded_again{0}, prefilled_again{0};
  std::atomic<uint32_t> resumed{0};
  std::atomic<int64_t> decode_us{0};

 private:
  // What the log has of a trajectory: its entries, or what is left of them in `head`.
  struct Logged {
    journal::TrajectoryStart start;  // of a compacted one: id, place, external and fork alone
    Summary summary;
    std::optional<replay::TrajectoryState> unfinished;  // nullopt: it is sealed
  };
  static absl::StatusOr<Logged> ReadLogged(replay::TrajectoryLog* log, const std::string& id,
                                           const journal::TrajectoryHead& head);
  absl::Status ReadExternalLogs(replay::TrajectoryLog* log);
  absl::Status ReadForkLogs(replay::TrajectoryLog* log);
  size_t PlacesLocked() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return spec_ != nullptr ? spec_->trajectories() : trajectory_ids_.size();
  }
  void NameGroupLocked(uint32_t ordinal, const std::string& name)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CountLocked(const Summary& summary, int sign) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  std::unique_ptr<JobSpec> spec_;
  absl::Status why_no_spec_;
  const engine::Tokenizer* tokenizer_ = nullptr;
  std::string id_;
  const bool external_ = false;
  const uint32_t group_size_ = 1;
  std::map<size_t, replay::TrajectoryState> unfinished_;

  mutable std::atomic<size_t> acknowledged_{0};
  absl::Mutex transition_ ABSL_ACQUIRED_BEFORE(mutex_);  // one SetState at a time
  mutable absl::Mutex mutex_;
  journal::JobRecord record_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> trajectory_ids_ ABSL_GUARDED_BY(mutex_);
  std::vector<Summary> summaries_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint32_t> attempts_ ABSL_GUARDED_BY(mutex_);  // of a job with a spec
  std::set<size_t> dropped_ ABSL_GUARDED_BY(mutex_);        // groups, by position
  std::vector<size_t> fork_places_ ABSL_GUARDED_BY(mutex_);  // of the indices behind the places
  uint32_t replaced_ ABSL_GUARDED_BY(mutex_) = 0;
  // Of an external job.
  std::map<std::string, uint32_t> group_ordinals_ ABSL_GUARDED_BY(mutex_);
  std::set<uint32_t> free_ordinals_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::pair<size_t, std::string>> names_
      ABSL_GUARDED_BY(mutex_);                               // to index and group
  std::vector<uint32_t> branches_ ABSL_GUARDED_BY(mutex_);  // logs of each trajectory; 0: free
  uint64_t version_ ABSL_GUARDED_BY(mutex_) = 0;
  // Sums over summaries_.
  uint64_t sealed_ ABSL_GUARDED_BY(mutex_) = 0, failed_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t sampled_ ABSL_GUARDED_BY(mutex_) = 0, fed_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t calls_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace reprise::rollout
