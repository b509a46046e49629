// What does not depend on RocksDB: batches, names of durabilities, waiting commits.
#include "storage/store.h"

#include <fmt/format.h>

#include "absl/synchronization/notification.h"

namespace reprise::storage {

absl::StatusOr<Durability> ParseDurability(std::string_view name) {
  if (name == "fsync") return Durability::kFsync;
  if (name == "os") return Durability::kOs;
  if (name == "none") return Durability::kNone;
  return absl::InvalidArgumentError(
      fmt::format("durability \"{}\" is not one of fsync, os, none", name));
}

void Batch::Put(Family family, std::string_view key, std::string_view payload) {
  ops_.push_back({Op::kPut, family, std::string(key), std::string(payload)});
  bytes_ += key.size() + payload.size();
}

void Batch::Delete(Family family, std::string_view key) {
  ops_.push_back({Op::kDelete, family, std::string(key), {}});
  bytes_ += key.size();
}

absl::Status Store::DeleteAll(Family family, std::string_view prefix, Batch* batch) {
  return Scan(family, prefix, [&](std::string_view key, std::string_view) {
    batch->Delete(family, key);
    return absl::OkStatus();
  });
}

absl::Status Store::Commit(Batch batch, Sync sync) {
  absl::Notification done;
  absl::Status result;
  CommitAsync(std::move(batch), sync, [&](absl::Status status) {
    result = std::move(status);
    done.Notify();
  });
  done.WaitForNotification();
  return result;
}

}  // namespace reprise::storage
