#include "sandboxd/container/runtime_class.h"

#include "base/ids.h"
#include "base/status_macros.h"

namespace reprise::sandboxd {

absl::StatusOr<RuntimeClass> FindRuntimeClass(const std::string& name) {
  if (name.empty() || name == "runc") return RuntimeClass{kRuncShim, ""};
  RETURN_IF_ERROR(base::CheckId(name, "spec.runtime"));
  if (name == "runsc") return RuntimeClass{"io.containerd.runsc.v1", ""};
  if (name == "kata") return RuntimeClass{"io.containerd.kata.v2", ""};
  if (name.starts_with("io.containerd.")) return RuntimeClass{name, ""};
  return RuntimeClass{kRuncShim, name};
}

}  // namespace reprise::sandboxd
