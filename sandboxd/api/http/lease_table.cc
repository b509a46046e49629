#include "sandboxd/api/http/lease_table.h"

#include <limits>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/status_macros.h"

namespace reprise::sandboxd::http {
namespace {

constexpr int64_t kRetryUs = 30'000'000;  // for an end that did not come about
constexpr int64_t kWaitMaxUs = 3'600'000'000;

}  // namespace

absl::StatusOr<std::unique_ptr<LeaseTable>> LeaseTable::Open(storage::Store* store,
                                                             storage::Family family) {
  std::unique_ptr<LeaseTable> table(new LeaseTable(store, family));
  absl::MutexLock lock(&table->mutex_);
  RETURN_IF_ERROR(
      store->Scan(family, "", [&](std::string_view key, std::string_view payload) -> absl::Status {
        Entry entry;
        if (!entry.lease.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) {
          return absl::DataLossError(
              fmt::format("{}: the lease of sandbox {} cannot be read", kLeaseFamily, key));
        }
        entry.due_us = entry.lease.ends_us();
        table->entries_[std::string(key)] = std::move(entry);
        return absl::OkStatus();
      }));
  return table;
}

LeaseTable::~LeaseTable() { Stop(); }

void LeaseTable::Watch(OnEnd on_end) {
  thread_ = std::thread([this, on_end = std::move(on_end)] { Run(on_end); });
}

void LeaseTable::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

absl::Status LeaseTable::Put(const std::string& id, const Lease& lease) {
  storage::Batch batch;
  batch.Put(family_, id, lease.SerializeAsString());
  RETURN_IF_ERROR(store_->Commit(std::move(batch)));
  absl::MutexLock lock(&mutex_);
  entries_[id] = {lease, lease.ends_us()};
  ++changes_;
  return absl::OkStatus();
}

absl::Status LeaseTable::Remove(const std::string& id) {
  {
    absl::MutexLock lock(&mutex_);
    if (entries_.erase(id) == 0) return absl::OkStatus();
  }
  storage::Batch batch;
  batch.Delete(family_, id);
  return store_->Commit(std::move(batch));
}

std::optional<LeaseTable::Lease> LeaseTable::Get(const std::string& id) const {
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) return std::nullopt;
  return found->second.lease;
}

absl::StatusOr<uint32_t> LeaseTable::CountStart(const std::string& id) {
  storage::Batch batch;
  uint32_t number = 0;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = entries_.find(id);
    if (found == entries_.end() || found->second.lease.trajectory().empty()) return 0;
    Lease& lease = found->second.lease;
    number = lease.started() + 1;
    lease.set_started(number);
    batch.Put(family_, id, lease.SerializeAsString());
  }
  RETURN_IF_ERROR(store_->Commit(std::move(batch)));
  return number;
}

int64_t LeaseTable::NextDue() const {
  int64_t next = std::numeric_limits<int64_t>::max();
  for (const auto& [id, entry] : entries_) {
    if (entry.due_us > 0) next = std::min(next, entry.due_us);
  }
  return next;
}

void LeaseTable::Run(const OnEnd& on_end) {
  while (true) {
    std::vector<std::pair<std::string, Lease>> ended;
    {
      absl::MutexLock lock(&mutex_);
      const uint64_t seen = changes_;
      const int64_t wait = std::min(NextDue() - base::WallMicros(), kWaitMaxUs);
      auto changed = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return stopping_ || changes_ != seen;
      };
      mutex_.AwaitWithTimeout(absl::Condition(&changed),
                              absl::Microseconds(std::max<int64_t>(wait, 0)));
      if (stopping_) return;
      const int64_t now = base::WallMicros();
      for (auto& [id, entry] : entries_) {
        if (entry.due_us == 0 || entry.due_us > now) continue;
        entry.due_us = now + kRetryUs;
        ended.emplace_back(id, entry.lease);
      }
    }
    for (const auto& [id, lease] : ended) on_end(id, lease);
  }
}

}  // namespace reprise::sandboxd::http
