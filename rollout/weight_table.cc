#include "rollout/weight_table.h"

#include <fmt/format.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/status_macros.h"
#include "rollout/text.h"

namespace reprise::rollout {

WeightTable::WeightTable(engine::Engine* engine, replay::TrajectoryLog* log, std::string model)
    : engine_(engine), log_(log), model_(std::move(model)) {
  journal::WeightsRecord own;
  own.set_model(model_);
  own.set_directory(model_);
  own.set_digest(engine_->digest());
  absl::MutexLock lock(&mutex_);
  records_[0] = std::move(own);
}

absl::Status WeightTable::Read() {
  ASSIGN_OR_RETURN(std::vector<journal::WeightsRecord> records, log_->Weights(model_));
  absl::MutexLock lock(&mutex_);
  for (journal::WeightsRecord& record : records) records_[record.version()] = std::move(record);
  return absl::OkStatus();
}

journal::WeightsRecord WeightTable::current() const {
  absl::MutexLock lock(&mutex_);
  return records_.rbegin()->second;
}

std::vector<journal::WeightsRecord> WeightTable::All() const {
  absl::MutexLock lock(&mutex_);
  std::vector<journal::WeightsRecord> out;
  for (const auto& [version, record] : records_) out.push_back(record);
  return out;
}

std::string WeightTable::Digest(uint64_t version) const {
  absl::MutexLock lock(&mutex_);
  auto found = records_.find(version);
  return found == records_.end() ? "" : found->second.digest();
}

absl::StatusOr<journal::WeightsRecord> WeightTable::Record(uint64_t version) const {
  absl::MutexLock lock(&mutex_);
  auto found = records_.find(version);
  if (found == records_.end()) {
    return absl::DataLossError(
        fmt::format("the journal has no record of weight version {} of {}", version, model_));
  }
  return found->second;
}

absl::StatusOr<WeightsPtr> WeightTable::Get(uint64_t version) {
  if (version == 0) return engine_->weights();
  ASSIGN_OR_RETURN(const journal::WeightsRecord record, Record(version));
  {
    absl::MutexLock lock(&mutex_);
    if (WeightsPtr loaded = loaded_[version].lock()) return loaded;
  }
  auto loaded = engine_->LoadWeights(record.directory());
  if (!loaded.ok()) {
    return absl::FailedPreconditionError(
        fmt::format("weight version {} of {} cannot be loaded again: {}: bring {} back", version,
                    model_, Message(loaded.status()), record.directory()));
  }
  if ((*loaded)->digest() != record.digest()) {
    return absl::FailedPreconditionError(fmt::format(
        "{} is not the checkpoint that was weight version {} of {}: bring back the one with "
        "digest {}",
        record.directory(), version, model_, record.digest()));
  }
  absl::MutexLock lock(&mutex_);
  loaded_[version] = *loaded;
  if (version == records_.rbegin()->first) newest_ = *loaded;
  return *std::move(loaded);
}

absl::StatusOr<WeightTable::Added> WeightTable::Add(journal::WeightsRecord record) {
  absl::MutexLock one(&adding_);
  ASSIGN_OR_RETURN(WeightsPtr weights, engine_->LoadWeights(record.directory()));
  const journal::WeightsRecord newest = current();
  if (record.version() == 0) record.set_version(newest.version() + 1);
  if (record.version() == newest.version() && weights->digest() == newest.digest()) {
    absl::MutexLock lock(&mutex_);
    if (newest_ == nullptr) loaded_[record.version()] = newest_ = weights;
    return Added{newest, newest_, true};
  }
  if (record.version() <= newest.version()) {
    return absl::FailedPreconditionError(fmt::format(
        "weight version {} is not above {}, the newest of {}: leave the version out, or give a "
        "higher one",
        record.version(), newest.version(), model_));
  }
  record.set_model(model_);
  record.set_digest(weights->digest());
  record.set_loaded_us(base::WallMicros());
  base::FailPoint("weights.loaded");
  RETURN_IF_ERROR(log_->PutWeights(record));
  base::FailPoint("weights.recorded");
  absl::MutexLock lock(&mutex_);
  records_[record.version()] = record;
  loaded_[record.version()] = newest_ = weights;
  return Added{std::move(record), std::move(weights), false};
}

}  // namespace reprise::rollout
