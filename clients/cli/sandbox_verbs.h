// What the commands of `reprise sandbox` and `reprise image` do once their arguments are known.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/cli/context.h"
#include "clients/cli/sandbox_api.h"

namespace reprise::cli {

struct SandboxOptions {
  SandboxTarget target;
  std::string tier;
  sandbox_wire::SandboxSpec spec;         // create; env, binds and labels come from the texts below
  sandbox_wire::ExecuteRequest request;   // exec
  std::vector<std::string> env, secrets;  // NAME=VALUE
  std::vector<std::string> binds, labels;  // HOST:INSIDE[:rw]; NAME=VALUE
  std::string id;                          // of a sandbox
  std::vector<std::string> ids;            // of several, or of images
  std::vector<std::string> words;          // exec: the command
  std::string call_id, from, to;           // logs, cp, image import
  std::string typed;                       // console
  bool follow = false;                     // console
  sandbox_wire::NetworkPolicy network;     // create, network
  bool no_network = false;                 // network
  bool forward_stdin = false, on_terminal = false;
  bool recursive = false;  // watch
  int events_max = 0;      // watch: then it ends; 0 for never
};

// "function", ... to its number. Usage error naming the tiers.
absl::StatusOr<sandbox_wire::Tier> ParseTier(const std::string& name);
// "NAME=VALUE" lines into variables.
absl::Status AddEnv(const std::vector<std::string>& texts, bool secret,
                    google::protobuf::RepeatedPtrField<sandbox_wire::EnvVar>* env);
// "HOST:INSIDE[:rw]" lines into binds; HOST is made absolute.
absl::Status AddBinds(const std::vector<std::string>& texts,
                      google::protobuf::RepeatedPtrField<sandbox_wire::Bind>* binds);

absl::StatusOr<int> ShowTiers(const Context& context, const SandboxOptions& options);
absl::StatusOr<int> CreateSandbox(const Context& context, const SandboxOptions& options);
absl::StatusOr<int> ExecInSandbox(const Context& context, const SandboxOptions& options);
// An interactive shell, or another program, on a terminal; exits as it does.
absl::StatusOr<int> ShellInSandbox(const Context& context, const SandboxOptions& options);
absl::StatusOr<int> ListSandboxes(const Context& context, const SandboxOptions& options);
absl::StatusOr<int> RemoveSandboxes(const Context& context, const SandboxOptions& options);
// The calls of a sandbox, or what one call printed.
absl::StatusOr<int> ShowLogs(const Context& context, const SandboxOptions& options);
absl::StatusOr<int> ShowCallOutput(const Context& context, const SandboxOptions& options);
absl::StatusOr<int> CopyFile(const Context& context, const SandboxOptions& options);
// Events of a directory, a line each, until Ctrl-C.
absl::StatusOr<int> WatchSandbox(const Context& context, const SandboxOptions& options);
absl::StatusOr<int> PauseSandboxes(const Context& context, const SandboxOptions& options);
absl::StatusOr<int> ResumeSandboxes(const Context& context, const SandboxOptions& options);

// Shows the network of a sandbox, or replaces it where options say so.
absl::StatusOr<int> NetworkOfSandbox(const Context& context, const SandboxOptions& options);

// The image's name comes from `to`, the snapshot's id from `call_id`.
absl::StatusOr<int> SnapshotSandbox(const Context& context, const SandboxOptions& options);
absl::StatusOr<int> ListSandboxSnapshots(const Context& context, const SandboxOptions& options);
// The new sandbox's id comes from `to`.
absl::StatusOr<int> ForkSandbox(const Context& context, const SandboxOptions& options);
absl::StatusOr<int> RestoreSandbox(const Context& context, const SandboxOptions& options);

absl::StatusOr<int> ImportImage(const Context& context, const SandboxOptions& options);
absl::StatusOr<int> ListImages(const Context& context, const SandboxOptions& options);
absl::StatusOr<int> RemoveImages(const Context& context, const SandboxOptions& options);

// The tiers of a host as three tables: usable or why not, verbs, default limits.
std::string TierTables(const std::vector<sandbox_wire::TierInfo>& tiers);

// One line for a call that did not simply exit with 0: "timed out: ...".
std::string Ending(const sandbox_wire::Result& result);

}  // namespace reprise::cli
