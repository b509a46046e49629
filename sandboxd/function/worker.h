// One worker of the function tier: a supervisor outside of the sandbox and the sandbox it made in
// advance. It serves one call, keeps its output and its end until they are released, and outlives
// the daemon while it has a call.
#pragma once

#include <linux/filter.h>

#include <string>
#include <vector>

#include "sandboxd/function/cgroup.h"

namespace reprise::sandboxd::function {

// What all workers of a zygote share.
struct WorkerSetup {
  std::string state_dir;  // of the tier; run directories are in it
  std::string root;       // the prepared root
  std::string gate;       // path of reprise-netgate
  const CgroupTree* cgroups = nullptr;
  const std::vector<sock_filter>* filter = nullptr;
};

// The whole life of a worker, in a process of its own.
[[noreturn]] void RunWorker(const WorkerSetup& setup, const std::string& id, uint32_t host_uid);

}  // namespace reprise::sandboxd::function
