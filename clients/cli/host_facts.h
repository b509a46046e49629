// What this machine has of the things that the daemons use. Every answer is found by trying where
// that is cheap, and says why where it is no.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace reprise::cli {

struct Fact {
  std::string name;
  bool good = true;   // false: something that one tier or path needs is missing
  std::string value;  // what there is, or why not and what to do
};

// Kernel, CPU, memory, disk of `state_dir` (or of the nearest directory above it), namespaces,
// control groups, Landlock, seccomp, containerd, runc.
std::vector<Fact> HostFacts(const std::string& state_dir, const std::string& containerd_socket);
// CUDA kernels of this build, and devices that the driver shows.
Fact CudaFact();

}  // namespace reprise::cli
