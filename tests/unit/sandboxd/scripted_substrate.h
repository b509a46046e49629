// A tier whose calls do what a test says, when it says so. It stands for the supervisors too: it
// outlives the managers, keeps what was not acknowledged, and can be asked again after a "restart".
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

class ScriptedSubstrate final : public Substrate {
 public:
  // ---- script
  // Waits until the call was started here.
  void WaitStarted(const std::string& call_id);
  // Waits until the journal has told that it has the call's RESULT.
  void WaitReleased(const std::string& call_id);
  // Waits until the journal has told that it has `upto` bytes of output.
  void WaitAcknowledged(const std::string& call_id, sandbox::Stream stream, uint64_t upto);
  // As the call would write and end, on the thread of the test. Also while nobody is attached.
  void Emit(const std::string& call_id, sandbox::Stream stream, const std::string& data);
  void End(const std::string& call_id, sandbox::Outcome outcome = sandbox::OUTCOME_EXITED,
           int exit_code = 0);
  void Forget(const std::string& call_id);  // its owner died without a trace
  void FailCreate(absl::Status status) { Set(&create_, status); }
  void FailRecover(absl::Status status) { Set(&recover_, status); }
  void FailReserve(absl::Status status) { Set(&reserve_, status); }
  void FailStart(absl::Status status) { Set(&start_, status); }
  void FailSnapshot(absl::Status status) { Set(&snapshot_, status); }
  // Files that the sandbox `id` holds, as one text: every call that starts adds its id and ';'. A
  // snapshot keeps it, a Create from its image begins with it.
  void SetFiles(const std::string& id, std::string files);
  // Images lie in files of this directory too, and those that are there are the first.
  void KeepIn(const std::string& directory);
  // To every watch that is open: an event, or the error that ends it.
  void Happen(const absl::StatusOr<sandbox::WatchEvent>& event);
  // Start accepts nothing: it behaves like a daemon that died just before it.
  void LoseStarts(bool lose);

  // ---- what was seen
  int starts(const std::string& call_id) const;
  int reserved() const;  // reservations neither used nor given back
  int creates() const;
  int stops() const;
  int thaws() const;
  int watches() const;  // open ones
  int snapshots() const;
  std::string files_of(const std::string& id) const;
  std::vector<std::string> images() const;  // by name
  uint64_t acknowledged(const std::string& call_id, sandbox::Stream stream) const;
  bool released(const std::string& call_id) const;
  std::string stdin_of(const std::string& call_id) const;
  sandbox::ExecuteRequest request_of(const std::string& call_id) const;
  std::vector<int> signals_of(const std::string& call_id) const;

  // ---- Substrate
  sandbox::Tier tier() const override { return sandbox::TIER_FUNCTION; }
  sandbox::Limits default_limits() const override;
  sandbox::TierInfo Describe() override;
  void Shutdown() override {}
  absl::StatusOr<std::string> CreateSandbox(const std::string& id, const sandbox::SandboxSpec& spec,
                                            std::vector<sandbox::StepTime>* steps) override;
  absl::Status RecoverSandbox(const SandboxRef& sandbox) override;
  absl::Status StopSandbox(const SandboxRef& sandbox) override;
  absl::Status PauseSandbox(const SandboxRef& sandbox) override;
  absl::Status ResumeSandbox(const SandboxRef& sandbox) override;
  absl::StatusOr<SnapshotImage> SnapshotSandbox(const SandboxRef& sandbox,
                                                const std::string& name) override;
  absl::StatusOr<std::vector<sandbox::Image>> ListImages() override;
  absl::Status RemoveImage(const std::string& name) override;
  absl::StatusOr<std::string> Reserve(const SandboxRef& sandbox) override;
  void Unreserve(const std::string& placement) override;
  absl::StatusOr<std::unique_ptr<RunningCall>> Start(const SandboxRef& sandbox,
                                                     const std::string& placement,
                                                     const sandbox::ExecuteRequest& request,
                                                     std::unique_ptr<CallSink> sink) override;
  Attachment Reattach(const SandboxRef& sandbox, const std::string& placement,
                      const std::string& call_id, OutputPosition from,
                      std::unique_ptr<CallSink>& sink) override;
  absl::StatusOr<std::unique_ptr<FileWatch>> Watch(const SandboxRef& sandbox,
                                                   const std::string& path,
                                                   bool recursive) override;

 private:
  class Handle;
  class ScriptedWatch;
  struct Job {
    std::string placement;
    sandbox::ExecuteRequest request;
    std::shared_ptr<CallSink> sink;  // null while nobody is attached
    std::string output[3];           // all of it, by stream
    uint64_t acknowledged[3] = {0, 0, 0};
    std::string stdin;
    std::vector<int> signals;
    bool ended = false, released = false;
    sandbox::Result result;
    int starts = 0;
  };
  void Set(absl::Status* slot, absl::Status status) {
    absl::MutexLock lock(&mutex_);
    *slot = std::move(status);
  }

  std::string FileOf(const std::string& image) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  std::string directory_ ABSL_GUARDED_BY(mutex_);  // of images; "" = none
  std::set<ScriptedWatch*> watches_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<Job>> jobs_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, int> starts_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> reserved_ ABSL_GUARDED_BY(mutex_);
  int next_ ABSL_GUARDED_BY(mutex_) = 0, stops_ ABSL_GUARDED_BY(mutex_) = 0,
            creates_ ABSL_GUARDED_BY(mutex_) = 0, thaws_ ABSL_GUARDED_BY(mutex_) = 0,
            snapshots_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, std::string> files_ ABSL_GUARDED_BY(mutex_);   // by sandbox
  std::map<std::string, std::string> images_ ABSL_GUARDED_BY(mutex_);  // by name
  bool lose_starts_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status create_ ABSL_GUARDED_BY(mutex_), recover_ ABSL_GUARDED_BY(mutex_),
      reserve_ ABSL_GUARDED_BY(mutex_), start_ ABSL_GUARDED_BY(mutex_),
      snapshot_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace reprise::sandboxd
