// Tells a whole disk with a system of its own from the images that this folder reads.
#pragma once

#include <string>

namespace reprise::sandboxd {

// Whether the file is a disk: QCOW2, or raw with a boot sector or a GUID partition table. False
// when it cannot be read.
bool IsDiskFile(const std::string& path);
// Whether the file begins as QCOW2.
bool IsQcow2File(const std::string& path);

}  // namespace reprise::sandboxd
