// The command line of QEMU for one machine: no default devices, no network, the supervisor's three
// streams, and what the board needs. Files go by descriptor, so no path that a disk names is ever
// opened.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sandboxd/microvm/vm_config.h"

namespace reprise::sandboxd::microvm {

// Descriptors of QEMU's ends.
struct QemuStreams {
  int port, monitor, console;
};
// Opens a file (flags O_RDONLY or O_RDWR) for the process; returns the name it has there.
using QemuFile = std::function<absl::StatusOr<std::string>(const std::string& path, int flags)>;

absl::StatusOr<std::vector<std::string>> QemuArguments(const VmConfig& config,
                                                       const QemuStreams& streams,
                                                       const QemuFile& file);

}  // namespace reprise::sandboxd::microvm
