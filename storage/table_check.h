// The one place of a table that RocksDB uses before it looks at its checksum: the last word of the
// block of properties. A bit that says there what no table of ours has aborts a RocksDB that is
// built with assertions, where it should be an error that names the file.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace rocksdb {
class Env;
}

namespace reprise::storage {

// Looks at every table in `directory`. DATA_LOSS names the file and the byte. What else is damaged
// is for RocksDB to find.
absl::Status CheckTables(rocksdb::Env* env, const std::string& directory);

}  // namespace reprise::storage
