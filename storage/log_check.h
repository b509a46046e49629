// Looks through RocksDB's own log files (write-ahead logs, MANIFEST) before they are opened.
// RocksDB takes a record whose length reaches past the end of the file for a torn write and drops
// it, and everything after it, in silence; a flipped bit of a length looks the same. Here a torn
// tail is one that nothing readable follows. The format is that of RocksDB: blocks of 32 KiB,
// records of masked CRC-32C, u16 length, u8 type, payload.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace rocksdb {
class Env;
}

namespace reprise::storage {

struct LogDamage {
  uint64_t offset = 0;  // of the damaged record's header, bytes
  std::string what;
};
// The first damage in the content of a log file; nothing for a whole file or one with a torn tail.
std::optional<LogDamage> FindLogDamage(std::string_view content);

// Checks every log file of a store's directory. DATA_LOSS "<file> is damaged at byte N: ..."; OK
// where there is no directory yet.
absl::Status CheckLogFiles(rocksdb::Env* env, const std::string& directory);

}  // namespace reprise::storage
