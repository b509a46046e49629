// Makes and removes containers: snapshot, root file system, record, task, agent, each step timed,
// all or nothing. A container's name is new each time, so it also names the incarnation of its
// sandbox: what was told to an older one is never mistaken for this one's. Thread-safe.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/container/containerd_client.h"
#include "sandboxd/container/id_pool.h"
#include "sandboxd/container/image_store.h"
#include "sandboxd/network/gates.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

namespace sandbox = ::reprise::sandbox::v1;

class ContainerLife {
 public:
  struct Options {
    std::string dir;  // of this daemon, private; each container has a directory of its own below it
    std::string agent_path;           // reprise-agent on the host
    std::string owner;                // names this daemon's state; marks its containers
    bool idmapped = false;            // user namespaces over id-mapped layers
    network::Gates* gates = nullptr;  // outlives this
  };
  // `client` and `images` outlive this.
  ContainerLife(Options options, ContainerdClient* client, ImageStore* images)
      : options_(std::move(options)), client_(client), images_(images) {}

  // INVALID_ARGUMENT or UNIMPLEMENTED when the tier cannot make what the specification asks for.
  static absl::Status CheckSpec(const sandbox::SandboxSpec& spec);

  // Returns the container's name when its agent answers. `limits` are the sandbox's, resolved.
  // After an error nothing is left.
  absl::StatusOr<std::string> Create(const std::string& sandbox_id,
                                     const sandbox::SandboxSpec& spec,
                                     const sandbox::Limits& limits,
                                     std::vector<sandbox::StepTime>* steps);
  // Keeps the files of a container, on which nothing writes meanwhile, as the image `name`.
  absl::StatusOr<SnapshotImage> Snapshot(const std::string& container, const std::string& name);
  // Kills what runs and removes everything. OK when nothing is there.
  absl::Status Remove(const std::string& container);
  // Removes containers and directories of this daemon that are not in `known`.
  absl::Status RemoveOthers(const std::set<std::string>& known);
  // Puts a policy in force; the gate is started where there is none. UNAVAILABLE; NOT_FOUND: the
  // container has ended.
  absl::Status SetNetwork(const std::string& container, const sandbox::NetworkPolicy& policy);
  // A gate that has ended is started again.
  absl::Status KeepNetwork(const std::string& container, const sandbox::NetworkPolicy& policy);
  absl::StatusOr<sandbox::NetworkCounters> CountNetwork(const std::string& container) {
    return options_.gates->Count(BoxDir(container));
  }
  // Where the agent's socket lies.
  std::string RunDir(const std::string& container) const { return BoxDir(container) + "/run"; }

 private:
  class Attempt;
  std::string BoxesDir() const { return options_.dir + "/boxes"; }
  std::string BoxDir(const std::string& container) const { return BoxesDir() + "/" + container; }
  absl::StatusOr<pid_t> ProcessOf(const std::string& container);
  absl::Status LearnIds();
  absl::Status RemoveTask(const std::string& container);
  absl::Status RemoveBoxDir(const std::string& container) const;

  const Options options_;
  ContainerdClient* const client_;
  ImageStore* const images_;
  IdPool ids_;
  absl::Mutex learn_mutex_;
  bool ids_learned_ ABSL_GUARDED_BY(learn_mutex_) = false;
};

}  // namespace reprise::sandboxd
