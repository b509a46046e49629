// KV states of paused trajectories on disk, one file a trajectory, so that a job that goes on need
// not read its tokens again. Nothing depends on them: a state that is missing, damaged or of other
// tokens is made again from the log. Thread-safe for different trajectories.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::rollout {

class KvFiles {
 public:
  // `directory` is made when the first state is saved; "" keeps nothing.
  explicit KvFiles(std::string directory) : directory_(std::move(directory)) {}

  bool Has(const std::string& trajectory_id) const;
  // Replaces the trajectory's state in one step. FAILED_PRECONDITION without a directory.
  absl::Status Save(const std::string& trajectory_id, std::string_view bytes) const;
  absl::StatusOr<std::string> Load(const std::string& trajectory_id) const;  // NOT_FOUND
  void Remove(const std::string& trajectory_id) const;

 private:
  std::string PathOf(const std::string& trajectory_id) const;

  const std::string directory_;
};

}  // namespace reprise::rollout
