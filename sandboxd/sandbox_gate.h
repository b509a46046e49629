// Who is inside each sandbox: calls enter before their INTENT and leave with their RESULT. A
// snapshot closes the door for as long as it takes, and learns whether it lies between two calls.
// A call may ask for the sandbox to itself, so that rolling it back undoes nobody else's work.
#pragma once

#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace reprise::sandboxd {

class SandboxGate {
 public:
  // Waits while a snapshot is taken. UNAVAILABLE when `alone` and another call is inside, and for
  // everybody while one is inside that came alone.
  absl::Status Enter(const std::string& sandbox_id, const std::string& call_id, bool alone)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // A call of an earlier daemon, which is inside already.
  void Adopt(const std::string& sandbox_id, const std::string& call_id, bool alone)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Nothing happens for one that is not inside.
  void Leave(const std::string& sandbox_id, const std::string& call_id) ABSL_LOCKS_EXCLUDED(mutex_);

  // Holds the door of one sandbox; waits for others that hold it.
  class Closed {
   public:
    Closed(SandboxGate* gate, std::string sandbox_id);
    ~Closed();
    Closed(const Closed&) = delete;
    Closed& operator=(const Closed&) = delete;
    bool quiet() const { return quiet_; }  // nobody was inside

   private:
    SandboxGate* const gate_;
    const std::string sandbox_id_;
    bool quiet_ = false;
  };

 private:
  struct Room {
    std::set<std::string> inside;
    std::string alone;  // the one that has it to itself
    bool closed = false;
  };
  void Tidy(const std::string& sandbox_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Open(const std::string& sandbox_id) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  absl::flat_hash_map<std::string, Room> rooms_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace reprise::sandboxd
