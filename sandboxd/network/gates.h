// The daemon's side of gates: starts them, finds those of an earlier daemon by their sockets, gives
// them new policies.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/network/launch.h"

namespace reprise::sandboxd::network {

namespace sandbox = ::reprise::sandbox::v1;

// As Policy::Text has it.
std::string PolicyText(const sandbox::NetworkPolicy& policy);

// ADDRESS:PORT of a flag's ADDRESS[:PORT]; "": of the first IPv4 nameserver of /etc/resolv.conf, or
// of this host where it has none, as for every other program. INVALID_ARGUMENT.
absl::StatusOr<std::string> ResolverAddress(const std::string& flag);

void Add(const sandbox::NetworkCounters& count, sandbox::NetworkCounters* sum);

// Thread-safe.
class Gates {
 public:
  // `helper_dir` has reprise-netgate. `resolver` as ResolverAddress makes it.
  Gates(const std::string& helper_dir, std::string resolver)
      : program_(helper_dir + "/" + kGateProgram), resolver_(std::move(resolver)) {}

  // Whether this host can do it; tried once, in a network namespace of its own. Not OK: what is
  // missing, what to do.
  absl::Status Usable() ABSL_LOCKS_EXCLUDED(mutex_);

  // Gives a gate a new policy. `dir`: where its socket is. NOT_FOUND: none was ever started there.
  // UNAVAILABLE: it has ended.
  absl::Status Set(const std::string& dir, const sandbox::NetworkPolicy& policy) const;
  using FindProcess = std::function<absl::StatusOr<pid_t>()>;
  // The same; starts one for the namespace of process `find()` where none answers.
  absl::Status Ensure(const std::string& dir, const sandbox::NetworkPolicy& policy,
                      const FindProcess& find) ABSL_LOCKS_EXCLUDED(starting_);
  // Starts one with this policy where none answers; leaves one that does as it is.
  absl::Status Keep(const std::string& dir, const sandbox::NetworkPolicy& policy,
                    const FindProcess& find) ABSL_LOCKS_EXCLUDED(starting_);
  // Errors as Set.
  absl::StatusOr<sandbox::NetworkCounters> Count(const std::string& dir) const;

 private:
  absl::Status Launch(const std::string& dir, const sandbox::NetworkPolicy& policy,
                      const FindProcess& find) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(starting_);

  const std::string program_, resolver_;
  absl::Mutex starting_;  // never two for one sandbox
  absl::Mutex mutex_;
  bool tried_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status usable_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace reprise::sandboxd::network
