// The weight versions of one model: what the journal says of each, and those that are in memory.
// Version 0 is the model directory as the engine loaded it. A version is in the journal, with its
// directory and digest, before a token is sampled under it, so that a restarted daemon knows what
// made which token, and refuses a checkpoint that is no longer the one that was recorded.
// Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"
#include "replay/trajectory_log.h"

namespace reprise::rollout {

namespace journal = ::reprise::journal::v1;

using WeightsPtr = std::shared_ptr<const engine::Weights>;

class WeightTable {
 public:
  // `engine` and `log` outlive this. `model`: the directory as the daemon resolved it.
  WeightTable(engine::Engine* engine, replay::TrajectoryLog* log, std::string model);

  // Reads what the journal has, once, before anything else. DATA_LOSS from the journal.
  absl::Status Read();

  // The newest version; its record has number 0 and the model directory where there was no update.
  journal::WeightsRecord current() const;
  std::vector<journal::WeightsRecord> All() const;  // in order, version 0 first

  // Of the version's weights; "" when there is no such version.
  std::string Digest(uint64_t version) const;

  // The weights of a version, loaded when they are not in memory. The newest stays there.
  // FAILED_PRECONDITION, one line, when its checkpoint is gone or another one.
  absl::StatusOr<WeightsPtr> Get(uint64_t version);

  // A version that was written down, or that was there already.
  struct Added {
    journal::WeightsRecord record;
    WeightsPtr weights;
    bool again = false;  // it is the newest already: nothing was done
  };
  // Loads record.directory and writes the record down, durably, as the newest version.
  // `record.version` 0 takes the next number. One at a time. Errors as Engine::LoadWeights, and
  // FAILED_PRECONDITION for a version that is not above the newest, unless it is the newest with
  // the same digest; then nothing changed.
  absl::StatusOr<Added> Add(journal::WeightsRecord record);

 private:
  absl::StatusOr<journal::WeightsRecord> Record(uint64_t version) const;

  engine::Engine* const engine_;
  replay::TrajectoryLog* const log_;
  const std::string model_;
  absl::Mutex adding_ ABSL_ACQUIRED_BEFORE(mutex_);
  mutable absl::Mutex mutex_;
  std::map<uint64_t, journal::WeightsRecord> records_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, std::weak_ptr<const engine::Weights>> loaded_ ABSL_GUARDED_BY(mutex_);
  WeightsPtr newest_ ABSL_GUARDED_BY(mutex_);  // nullptr until it is asked for
};

}  // namespace reprise::rollout
