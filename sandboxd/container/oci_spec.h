// The OCI runtime specification of a sandbox's container: reprise-agent as init, own namespaces
// (user namespace where ids are mapped), no network but loopback, seccomp, masked and read-only
// paths, cgroup limits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::sandboxd {

namespace sandbox = ::reprise::sandbox::v1;

struct ContainerSpecInput {
  std::string hostname;
  std::string agent_path;               // reprise-agent on the host
  std::string run_dir;                  // host directory that holds the agent's socket
  std::vector<std::string> agent_args;  // after the program's name
  std::vector<std::string> env;         // the image's, NAME=value
  std::vector<sandbox::Bind> binds;     // checked by the caller
  sandbox::Limits limits;               // resolved; of the sandbox
  std::string cgroup_path;              // absolute, below each hierarchy's root
  uint32_t base_id = 0;                 // 0: no user namespace
};

std::string MakeRuntimeSpec(const ContainerSpecInput& input);

// Where the two mounts of the agent lie inside.
inline constexpr char kAgentInside[] = "/.reprise/agent";
inline constexpr char kRunDirInside[] = "/.reprise/run";

}  // namespace reprise::sandboxd
