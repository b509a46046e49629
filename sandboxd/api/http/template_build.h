// Builds of templates: a container begins with a known image, the steps run in it one after another
// (each a call, each kept as a snapshot under the digest of everything up to it), and the last
// snapshot is the template's image. A build that begins like an earlier one goes on from there.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "sandboxd/api/http/lease_table.h"
#include "sandboxd/api/http/surface.h"
#include "sandboxd/api/http/template_store.h"

namespace reprise::sandboxd::http {

struct BuildStep {
  std::string type;  // RUN, COPY, ENV, WORKDIR, USER
  std::vector<std::string> args;
  std::string files_hash;  // of a COPY
  bool force = false;      // runs although it is known
};
struct BuildOrder {
  std::string name;
  std::string from_image, from_template;  // one of them
  std::vector<BuildStep> steps;
  bool force = false;
  std::string start_command, ready_command;
};

struct BuildLog {
  int64_t time_us = 0;  // wall clock
  std::string level, message, step;
};
struct BuildState {
  enum class Phase { kWaiting, kBuilding, kReady, kError };
  Phase phase = Phase::kWaiting;
  std::vector<BuildLog> log;
  std::string reason, failed_step;  // of an error: one line; the number of the step
};

class TemplateBuilds {
 public:
  // All outlive this.
  TemplateBuilds(const Surface& surface, LeaseTable* leases, TemplateStore* store);
  ~TemplateBuilds();

  TemplateStore* store() { return store_; }
  // A build that waits for its order, under the id that it returns.
  std::string Announce(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);
  // The name that it was announced with. NOT_FOUND.
  absl::StatusOr<std::string> NameOf(const std::string& build_id) ABSL_LOCKS_EXCLUDED(mutex_);
  // Builds in the background; builds of one name after one another. NOT_FOUND for a build that was
  // not announced, INVALID_ARGUMENT and UNIMPLEMENTED for steps that cannot be, UNAVAILABLE for too
  // many. A build that is ordered again goes on as it is.
  absl::Status Order(const std::string& build_id, BuildOrder order) ABSL_LOCKS_EXCLUDED(mutex_);
  // Builds are forgotten when the daemon is restarted. NOT_FOUND.
  absl::StatusOr<BuildState> State(const std::string& build_id) ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits for what runs. REQUIRES: calls end, so that none is waited for in vain.
  void Shutdown();

 private:
  struct Build {
    std::string name;
    bool ordered = false;
    BuildState state;
  };
  class Run;

  void Log(const std::string& build_id, std::string level, std::string message, std::string step)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Finish(const std::string& build_id, const absl::Status& status, const std::string& step)
      ABSL_LOCKS_EXCLUDED(mutex_);

  const Surface surface_;
  LeaseTable* const leases_;
  TemplateStore* const store_;
  absl::Mutex mutex_;
  std::map<std::string, Build> builds_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<absl::Mutex>> names_ ABSL_GUARDED_BY(mutex_);
  WorkerPool pool_;  // last: its threads use everything above
};

}  // namespace reprise::sandboxd::http
