// Reads a layer to its end before anything of it is unpacked: truncated and malformed layers, names
// that lead out, bombs, and links where the runtime mounts things are found here. Whiteouts are
// left as they are.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace reprise::sandboxd {

inline constexpr uint64_t kLayerBytesMax = 256ull << 30;  // unpacked
inline constexpr uint64_t kLayerEntriesMax = 10'000'000;

// `what` names the layer in errors: DATA_LOSS, INVALID_ARGUMENT or RESOURCE_EXHAUSTED.
absl::Status ScanLayer(const std::string& path, const std::string& what);

}  // namespace reprise::sandboxd
