// The one sandbox of the function tier in which all programs are judged; each gets a worker of its
// own there.
#pragma once

#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "sandboxd/api/http/surface.h"

namespace reprise::sandboxd::http {

class JudgeBox {
 public:
  explicit JudgeBox(SandboxManager* sandboxes) : sandboxes_(sandboxes) {}
  // Its id. Made when it is first needed; an id is used up when somebody stopped its sandbox.
  absl::StatusOr<std::string> Id() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  SandboxManager* const sandboxes_;
  absl::Mutex mutex_;
  int number_ ABSL_GUARDED_BY(mutex_) = 0;
};

// 422, as the clients' framework words a request that does not validate.
Response InvalidRun(std::string_view what);
// How a call that was refused reads to the clients of /run_code: 504 for overload, 422 for what can
// never work, 409 for a divergence; anything else is the platform's failure, `platform`.
Response RefusedRun(const absl::Status& status, Response (*platform)(std::string_view message));
// Who may run code: the owner.
Guard OwnerGuard(const Surface& surface);

}  // namespace reprise::sandboxd::http
