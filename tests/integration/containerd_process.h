// A containerd of the test's own: scratch root, state and socket, no plugins that the tier does not
// use. Started once for a suite and stopped by its pid; whatever a failed test left in it is
// removed first.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/fd.h"

namespace reprise::sandboxd {

class ContainerdProcess {
 public:
  // Why containers cannot run on this machine; "" when they can.
  static std::string WhyNot();

  static absl::StatusOr<std::unique_ptr<ContainerdProcess>> Start();
  ~ContainerdProcess();
  ContainerdProcess(const ContainerdProcess&) = delete;
  ContainerdProcess& operator=(const ContainerdProcess&) = delete;

  const std::string& address() const { return address_; }

 private:
  ContainerdProcess() = default;
  base::ScratchDir scratch_{"reprise-containerd"};
  std::string address_;
  pid_t pid_ = -1;
};

}  // namespace reprise::sandboxd
