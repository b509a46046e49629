// A directory of whole files beside a store, through the same Env, so that tests can make its disk
// fail. A file is there whole and durable, or not at all; a removal may be undone by a power cut,
// so whoever keeps such a directory removes at its start what nobody names.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace rocksdb {
class Env;
}

namespace reprise::storage {

class FileDir {
 public:
  // Made when it is missing, with its parent's entry for it durable. `env`: nullptr = the real
  // disk.
  static absl::StatusOr<FileDir> Open(std::string path, rocksdb::Env* env = nullptr);

  // Durable on return; replaces a file of that name in one step. RESOURCE_EXHAUSTED for a full
  // disk, DATA_LOSS else, both naming the file.
  absl::Status Write(std::string_view name, std::string_view bytes) const;
  // NOT_FOUND; RESOURCE_EXHAUSTED when it is larger than `bytes_max`.
  absl::StatusOr<std::string> Read(std::string_view name, uint64_t bytes_max) const;
  // OK when it is not there.
  absl::Status Remove(std::string_view name) const;
  // Names of all files, those of writes that a kill cut off included; in no order.
  absl::StatusOr<std::vector<std::string>> List() const;

  std::string Path(std::string_view name) const;

 private:
  FileDir(std::string path, rocksdb::Env* env) : path_(std::move(path)), env_(env) {}
  absl::Status SyncDirectory(const std::string& path) const;

  std::string path_;
  rocksdb::Env* env_;
};

}  // namespace reprise::storage
