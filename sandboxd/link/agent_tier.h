// What the tiers whose sandboxes have an agent share: calls and files go to the agent through the
// socket in the sandbox's run directory, and the sandbox itself, whose placement is new each time
// it is made, runs every call.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "sandboxd/link/remote_call.h"
#include "sandboxd/link/remote_files.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

class AgentTier : public Substrate {
 public:
  void Shutdown() override {}

  absl::StatusOr<std::string> Reserve(const SandboxRef& sandbox) override;
  void Unreserve(const std::string&) override {}
  absl::StatusOr<std::unique_ptr<RunningCall>> Start(const SandboxRef& sandbox,
                                                     const std::string& placement,
                                                     const sandbox::ExecuteRequest& request,
                                                     std::unique_ptr<CallSink> sink) override;
  // A paused agent does not answer: the sandbox runs for the moment that it needs.
  Attachment Reattach(const SandboxRef& sandbox, const std::string& placement,
                      const std::string& call_id, OutputPosition from,
                      std::unique_ptr<CallSink>& sink) override;

  absl::Status ReadFile(const SandboxRef& sandbox, const std::string& path,
                        const std::function<absl::Status(std::string_view)>& chunk) override;
  absl::Status WriteFile(const SandboxRef& sandbox, const std::string& path, uint32_t mode,
                         const std::function<absl::StatusOr<std::string>()>& next) override;
  absl::StatusOr<std::vector<sandbox::FileInfo>> ListDir(const SandboxRef& sandbox,
                                                         const std::string& path) override;
  absl::Status MakeDir(const SandboxRef& sandbox, const std::string& path) override;
  absl::Status Move(const SandboxRef& sandbox, const std::string& from,
                    const std::string& to) override;
  absl::Status Remove(const SandboxRef& sandbox, const std::string& path) override;
  absl::StatusOr<std::unique_ptr<FileWatch>> Watch(const SandboxRef& sandbox,
                                                   const std::string& path,
                                                   bool recursive) override;

 protected:
  // `noun`: what a sandbox is here ("container"), for messages.
  AgentTier(std::string noun, std::unique_ptr<RemoteCallLoop> loop)
      : noun_(std::move(noun)), loop_(std::move(loop)) {}

  // Where the agent of a sandbox has its socket.
  virtual std::string RunDir(const std::string& placement) const = 0;
  // Who runs the calls of a sandbox; the default knows no more than its run directory.
  virtual CallOwner Owner(const std::string& placement) const { return {RunDir(placement)}; }
  // Comes back with the result of a call that starts now (CallOwner::judge).
  virtual uint64_t CallTag(const std::string&) const { return 0; }
  // Whether calls with these limits can run in a sandbox of this spec.
  virtual absl::Status CheckCallLimits(const sandbox::Limits& call,
                                       const sandbox::SandboxSpec& spec) const = 0;
  // Whether the sandbox stands still. Not OK: it is gone, and the message says why.
  virtual absl::StatusOr<bool> Paused(const std::string& placement) = 0;
  // Whether a sandbox has an agent: every verb here asks first. The default says yes.
  virtual absl::Status NeedsAgent(const std::string&) { return absl::OkStatus(); }

  absl::Status Ping(const std::string& placement) const;
  // Lets the agents of all known sandboxes that run forget calls which nobody asked for.
  void PruneCalls();

  // Sandboxes that the journal has.
  void Know(const std::string& placement);
  void Forget(const std::string& placement);
  std::set<std::string> Known() const;

  static void Log(const SandboxRef& sandbox, const absl::Status& status);

 private:
  absl::StatusOr<RemotePath> At(const SandboxRef& sandbox, const std::string& path);

  const std::string noun_;
  const std::unique_ptr<RemoteCallLoop> loop_;
  mutable absl::Mutex known_mutex_;
  std::set<std::string> known_ ABSL_GUARDED_BY(known_mutex_);
};

// For CheckCallLimits: UNIMPLEMENTED when a call asks for another `what` than its sandbox `has`;
// 0 and `default_value` ask for nothing.
absl::Status CheckSandboxLimit(std::string_view tier, std::string_view what, uint64_t asked,
                               uint64_t has, uint64_t default_value);

}  // namespace reprise::sandboxd
