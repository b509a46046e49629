// Unpacks a verified layer over the ones before it into a private directory: entries are written
// through no symbolic link and never outside, whiteouts remove what lower layers brought.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace reprise::sandboxd::microvm {

// `directory` is free of links itself (a real path). `what` names the layer in errors:
// INVALID_ARGUMENT (leads out), DATA_LOSS (malformed), RESOURCE_EXHAUSTED (the disk is full).
absl::Status ApplyLayer(const std::string& layer_path, const std::string& directory,
                        const std::string& what);

}  // namespace reprise::sandboxd::microvm
