// What a status of RocksDB means.
#pragma once

#include <rocksdb/status.h>

#include <string>

namespace reprise::storage {

// Its own code for a full disk is not set by every Env.
inline bool IsDiskFull(const rocksdb::Status& status) {
  return status.IsNoSpace() || status.ToString().find("No space left") != std::string::npos;
}

}  // namespace reprise::storage
