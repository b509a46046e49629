// Which OCI runtime runs a sandbox: the names that users know, turned into what containerd wants to
// hear.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace reprise::sandboxd {

// The shim of runc and of programs like it: they make Linux containers of the host's kernel.
inline constexpr char kRuncShim[] = "io.containerd.runc.v2";

struct RuntimeClass {
  std::string shim;    // containerd's name of the shim, e.g. "io.containerd.runc.v2"
  std::string binary;  // another program with runc's command line, "" for the shim's own
};

// "" and "runc": runc. "runsc" and "kata": their own shims. "io.containerd.<name>.v<n>": that shim.
// Any other name: a program that is used as runc is (crun, youki). INVALID_ARGUMENT when it is no
// name.
absl::StatusOr<RuntimeClass> FindRuntimeClass(const std::string& name);

}  // namespace reprise::sandboxd
