// Clones of templates that wait for a sandbox: loaded, paused, and without a name. A create takes
// one of its kind and has only to wake it. One thread refills in the background. They are nobody's
// but this process's: each ends when its lifeline closes, however this process ends.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <optional>
#include <set>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/fd.h"

namespace reprise::sandboxd::microvm {

struct ReadyMachine {
  std::string name;         // of its box
  base::UniqueFd lifeline;  // the machine ends when it is closed before it is adopted
  uint64_t bytes = 0;       // of memory that nothing else has
};

class ReadyPool {
 public:
  struct Limits {
    int of_a_kind = 0;       // 0: no pool
    uint64_t bytes_max = 0;  // of all
  };
  using Make = std::function<absl::StatusOr<ReadyMachine>()>;
  // Ends one that was not taken.
  using Drop = std::function<void(ReadyMachine)>;

  ReadyPool(Limits limits, Drop drop) : limits_(limits), drop_(std::move(drop)) {}
  ~ReadyPool() { Close(); }

  // Begins: runs `first`, which may call Prepare, on the pool's thread. Nothing is made before.
  void Start(std::function<void()> first);
  // One of this kind if there is one. From then on the pool keeps machines of it, which `make`
  // makes on the pool's thread; the kinds that were wanted last have the memory.
  std::optional<ReadyMachine> Take(const std::string& kind, Make make);
  // As if somebody had taken one.
  void Prepare(const std::string& kind, Make make);
  // Those that wait.
  std::set<std::string> Names() const;
  // Ends all that wait; no more are made.
  void Close();

 private:
  struct Kind {
    std::string name;
    Make make;
    std::list<ReadyMachine> ready;
    bool failed = false;  // the last attempt; tried again when somebody wants one
  };
  void Want(const std::string& kind, Make make) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Kind* Short() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint64_t Bytes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run(const std::function<void()>& first);
  void MakeOne(const std::string& kind, const Make& make);

  const Limits limits_;
  const Drop drop_;
  mutable absl::Mutex mutex_;
  std::list<Kind> kinds_ ABSL_GUARDED_BY(mutex_);  // the last wanted first
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // of Start, joined by Close
};

}  // namespace reprise::sandboxd::microvm
