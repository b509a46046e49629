#include "replay/call_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/status_macros.h"
#include "replay/keys.h"
#include "replay/request_digest.h"
#include "replay/sha256.h"

namespace reprise::replay {
namespace {

enum CallFamily : storage::Family {
  kSandboxes,
  kCalls,
  kResults,
  kRunning,
  kOrder,
  kOutput,
  kTotals,
  kSnapshots
};

constexpr size_t kChunkBytes = 64 << 10;
// Bytes that were forgotten before the disk gets them back.
constexpr uint64_t kReclaimBytes = 64ull << 20;

template <typename Message>
absl::StatusOr<Message> Parse(std::string_view payload, std::string_view what) {
  Message message;
  if (!message.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) {
    return absl::DataLossError(
        fmt::format("journal record of {} is not a {}", what, message.GetTypeName()));
  }
  return message;
}

journal::Durability ToProto(storage::Durability durability) {
  switch (durability) {
    case storage::Durability::kFsync:
      return journal::DURABILITY_FSYNC;
    case storage::Durability::kOs:
      return journal::DURABILITY_OS;
    case storage::Durability::kNone:
      return journal::DURABILITY_NONE;
  }
  return journal::DURABILITY_UNSPECIFIED;
}

// What is known of the output of one call while it runs.
struct OutputState {
  CallLog::Offsets totals;
  uint64_t next_sequence = 0;
  uint64_t kept_bytes = 0;
  std::deque<std::pair<uint64_t, size_t>> chunks;  // (sequence, bytes), oldest first
};

class CallLogImpl final : public CallLog {
 public:
  explicit CallLogImpl(storage::Store* store) : store_(store) {}

  absl::Status PutSandbox(const journal::SandboxRecord& record) override {
    storage::Batch batch;
    batch.Put(kSandboxes, record.id(), record.SerializeAsString());
    return store_->Commit(std::move(batch));
  }

  absl::StatusOr<journal::SandboxRecord> GetSandbox(std::string_view id) override {
    absl::StatusOr<std::string> payload = store_->Get(kSandboxes, id);
    if (absl::IsNotFound(payload.status())) {
      return absl::NotFoundError(fmt::format("there is no sandbox \"{}\"; create it first", id));
    }
    RETURN_IF_ERROR(payload.status());
    return Parse<journal::SandboxRecord>(*payload, id);
  }

  absl::StatusOr<std::vector<journal::SandboxRecord>> ListSandboxes() override {
    std::vector<journal::SandboxRecord> records;
    RETURN_IF_ERROR(store_->Scan(
        kSandboxes, "", [&](std::string_view key, std::string_view payload) -> absl::Status {
          ASSIGN_OR_RETURN(journal::SandboxRecord record,
                           Parse<journal::SandboxRecord>(payload, key));
          records.push_back(std::move(record));
          return absl::OkStatus();
        }));
    return records;
  }

  absl::Status PutSnapshot(const journal::SnapshotRecord& record) override {
    storage::Batch batch;
    batch.Put(kSnapshots, IdNumberKey(record.sandbox_id(), record.number()),
              record.SerializeAsString());
    return store_->Commit(std::move(batch));
  }

  absl::Status DropSnapshot(std::string_view sandbox_id, uint64_t number) override {
    storage::Batch batch;
    batch.Delete(kSnapshots, IdNumberKey(sandbox_id, number));
    return store_->Commit(std::move(batch));
  }

  absl::StatusOr<std::vector<journal::SnapshotRecord>> ListSnapshots(
      std::string_view sandbox_id) override {
    std::vector<journal::SnapshotRecord> records;
    RETURN_IF_ERROR(store_->Scan(
        kSnapshots, sandbox_id.empty() ? std::string() : IdPrefix(sandbox_id),
        [&](std::string_view key, std::string_view payload) -> absl::Status {
          ASSIGN_OR_RETURN(journal::SnapshotRecord record,
                           Parse<journal::SnapshotRecord>(payload, key.substr(0, key.find('\0'))));
          records.push_back(std::move(record));
          return absl::OkStatus();
        }));
    return records;
  }

  absl::StatusOr<Found> FindById(std::string_view call_id) override {
    absl::StatusOr<std::string> payload = store_->Get(kCalls, call_id);
    if (absl::IsNotFound(payload.status())) {
      return absl::NotFoundError(fmt::format("there is no call \"{}\" in the journal", call_id));
    }
    RETURN_IF_ERROR(payload.status());
    Found found;
    ASSIGN_OR_RETURN(found.intent, Parse<journal::CallIntent>(*payload, call_id));
    absl::StatusOr<std::string> result = store_->Get(kResults, call_id);
    if (absl::IsNotFound(result.status())) return found;
    RETURN_IF_ERROR(result.status());
    ASSIGN_OR_RETURN(found.result, Parse<journal::CallResult>(*result, call_id));
    return found;
  }

  absl::StatusOr<Found> Find(const sandbox::ExecuteRequest& request) override {
    ASSIGN_OR_RETURN(Found found, FindById(request.call_id()));
    const sandbox::ExecuteRequest redacted = RedactSecrets(request);
    if (RedactedDigest(redacted) != found.intent.request_digest()) {
      std::string difference = FirstDifference(found.intent.request(), redacted);
      return absl::FailedPreconditionError(fmt::format(
          "divergence: {}; call id \"{}\" was used before with another request",
          difference.empty() ? "request digest differs" : difference, request.call_id()));
    }
    return found;
  }

  absl::StatusOr<journal::CallIntent> Begin(journal::CallIntent intent) override {
    const std::string call_id = intent.call_id();
    const std::string sandbox_id = intent.sandbox_id();
    *intent.mutable_request() = RedactSecrets(intent.request());
    intent.set_request_digest(RedactedDigest(intent.request()));
    intent.set_intent_us(base::WallMicros());
    intent.set_durability(ToProto(store_->durability()));

    absl::Notification done;
    absl::Status committed;
    {
      absl::MutexLock lock(&mutex_);
      // A rival that is writing the same id is waited for, so that Find sees its INTENT.
      auto free = [this, &call_id]()
                      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !claimed_.contains(call_id); };
      mutex_.Await(absl::Condition(&free));
      absl::StatusOr<std::string> existing = store_->Get(kCalls, call_id);
      if (existing.ok()) {
        return absl::AlreadyExistsError(fmt::format("call id \"{}\" is taken", call_id));
      }
      if (!absl::IsNotFound(existing.status())) return existing.status();
      ASSIGN_OR_RETURN(uint64_t* const next, NextOrdinal(sandbox_id));
      const uint64_t ordinal = (*next)++;
      intent.set_ordinal(ordinal);
      storage::Batch batch;
      batch.Put(kCalls, call_id, intent.SerializeAsString());
      batch.Put(kRunning, call_id, "");
      batch.Put(kOrder, IdNumberKey(sandbox_id, ordinal), call_id);
      claimed_.insert(call_id);
      // Queued under the lock: the order of the log is the order of the ordinals.
      store_->CommitAsync(std::move(batch), storage::Sync::kDurable, [&](absl::Status status) {
        committed = std::move(status);
        done.Notify();
      });
    }
    done.WaitForNotification();
    absl::MutexLock lock(&mutex_);
    claimed_.erase(call_id);
    RETURN_IF_ERROR(committed);
    return intent;
  }

  absl::Status Rebind(std::string_view call_id, std::string_view placement,
                      std::string_view boot_id) override {
    ASSIGN_OR_RETURN(Found found, FindById(call_id));
    if (found.result.has_value()) {
      return absl::AlreadyExistsError(
          fmt::format("call \"{}\" has its result; it cannot move", call_id));
    }
    found.intent.set_placement(std::string(placement));
    found.intent.set_boot_id(std::string(boot_id));
    storage::Batch batch;
    batch.Put(kCalls, call_id, found.intent.SerializeAsString());
    RETURN_IF_ERROR(store_->DeleteAll(kOutput, IdPrefix(call_id), &batch));
    batch.Delete(kTotals, call_id);
    {
      absl::MutexLock lock(&mutex_);
      outputs_.erase(std::string(call_id));
    }
    return store_->Commit(std::move(batch));
  }

  absl::Status AppendOutput(std::string_view call_id, sandbox::Stream stream, uint64_t offset,
                            std::string_view data, uint64_t kept_bytes) override {
    absl::Notification done;
    absl::Status written;
    RETURN_IF_ERROR(
        QueueOutput(call_id, stream, offset, data, kept_bytes, [&](absl::Status status) {
          written = std::move(status);
          done.Notify();
        }));
    done.WaitForNotification();
    return written;
  }

  absl::StatusOr<Offsets> OutputOffsets(std::string_view call_id) override {
    absl::MutexLock lock(&mutex_);
    ASSIGN_OR_RETURN(OutputState * state, LoadOutput(call_id));
    return state->totals;
  }

  absl::Status ReadOutput(
      std::string_view call_id,
      const std::function<absl::Status(const journal::CallOutput&)>& visit) override {
    return store_->Scan(kOutput, IdPrefix(call_id),
                        [&](std::string_view, std::string_view payload) -> absl::Status {
                          ASSIGN_OR_RETURN(journal::CallOutput chunk,
                                           Parse<journal::CallOutput>(payload, call_id));
                          return visit(chunk);
                        });
  }

  absl::Status Complete(std::string_view call_id, const sandbox::Result& result) override {
    ASSIGN_OR_RETURN(Found found, FindById(call_id));
    if (found.result.has_value()) {
      return absl::AlreadyExistsError(fmt::format("call \"{}\" already has its result", call_id));
    }
    journal::CallResult record;
    record.set_call_id(std::string(call_id));
    *record.mutable_result() = result;
    record.set_result_us(base::WallMicros());
    record.set_durability(ToProto(store_->durability()));
    ASSIGN_OR_RETURN(std::string digest, OutputDigest(call_id));
    record.set_output_digest(digest);
    storage::Batch batch;
    batch.Put(kResults, call_id, record.SerializeAsString());
    batch.Delete(kRunning, call_id);
    RETURN_IF_ERROR(store_->Commit(std::move(batch)));
    absl::MutexLock lock(&mutex_);
    outputs_.erase(std::string(call_id));
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<journal::CallIntent>> Running() override {
    std::vector<std::string> ids;
    RETURN_IF_ERROR(store_->Scan(kRunning, "", [&](std::string_view key, std::string_view) {
      ids.emplace_back(key);
      return absl::OkStatus();
    }));
    std::vector<journal::CallIntent> intents;
    for (const std::string& id : ids) {
      ASSIGN_OR_RETURN(Found found, FindById(id));
      intents.push_back(std::move(found.intent));
    }
    std::stable_sort(intents.begin(), intents.end(), [](const auto& a, const auto& b) {
      return std::pair(a.intent_us(), a.ordinal()) < std::pair(b.intent_us(), b.ordinal());
    });
    return intents;
  }

  absl::StatusOr<uint64_t> CountCalls(std::string_view sandbox_id) override {
    absl::MutexLock lock(&mutex_);
    ASSIGN_OR_RETURN(const uint64_t* const next, NextOrdinal(std::string(sandbox_id)));
    return *next;
  }

  absl::Status Forget(std::string_view sandbox_id) override {
    RETURN_IF_ERROR(GetSandbox(sandbox_id).status());
    ASSIGN_OR_RETURN(const std::vector<journal::SnapshotRecord> snapshots,
                     ListSnapshots(sandbox_id));
    if (!snapshots.empty()) {
      return absl::FailedPreconditionError(
          fmt::format("snapshot \"{}\" of sandbox \"{}\" is kept: remove its image {} first",
                      snapshots[0].snapshot_id(), sandbox_id, snapshots[0].image()));
    }
    ASSIGN_OR_RETURN(const std::vector<Found> calls, ListCalls(sandbox_id));
    storage::Batch batch;
    uint64_t bytes = 0;
    for (const Found& call : calls) {
      const std::string& id = call.intent.call_id();
      if (!call.result.has_value()) {
        return absl::FailedPreconditionError(
            fmt::format("call \"{}\" of sandbox \"{}\" has no result yet", id, sandbox_id));
      }
      bytes += call.intent.ByteSizeLong() + call.result->result().stdout_bytes() +
               call.result->result().stderr_bytes();
      batch.Delete(kCalls, id);
      batch.Delete(kResults, id);
      batch.Delete(kTotals, id);
      RETURN_IF_ERROR(store_->DeleteAll(kOutput, IdPrefix(id), &batch));
    }
    RETURN_IF_ERROR(store_->DeleteAll(kOrder, IdPrefix(sandbox_id), &batch));
    batch.Delete(kSandboxes, sandbox_id);
    RETURN_IF_ERROR(store_->Commit(std::move(batch)));
    base::FailPoint("calls.forgotten");
    {
      absl::MutexLock lock(&mutex_);
      next_ordinal_.erase(std::string(sandbox_id));
      for (const Found& call : calls) outputs_.erase(call.intent.call_id());
      forgotten_bytes_ += bytes;
      if (forgotten_bytes_ < kReclaimBytes) return absl::OkStatus();
      forgotten_bytes_ = 0;
    }
    return store_->Reclaim();
  }

  absl::StatusOr<std::vector<Found>> ListCalls(std::string_view sandbox_id) override {
    std::vector<std::string> ids;
    RETURN_IF_ERROR(
        store_->Scan(kOrder, IdPrefix(sandbox_id), [&](std::string_view, std::string_view payload) {
          ids.emplace_back(payload);
          return absl::OkStatus();
        }));
    std::vector<Found> calls;
    for (const std::string& id : ids) {
      ASSIGN_OR_RETURN(Found found, FindById(id));
      calls.push_back(std::move(found));
    }
    return calls;
  }

 private:
  static std::string EncodeTotals(const Offsets& totals) {
    std::string bytes;
    for (uint64_t value : {totals.stdout_bytes, totals.stderr_bytes}) {
      for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(value >> (8 * i)));
    }
    return bytes;
  }

  // The next free place in a sandbox's order.
  absl::StatusOr<uint64_t*> NextOrdinal(const std::string& sandbox_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    auto it = next_ordinal_.find(sandbox_id);
    if (it == next_ordinal_.end()) {
      uint64_t next = 0;
      RETURN_IF_ERROR(
          store_->Scan(kOrder, IdPrefix(sandbox_id), [&](std::string_view key, std::string_view) {
            next = NumberOfKey(key) + 1;
            return absl::OkStatus();
          }));
      it = next_ordinal_.emplace(sandbox_id, next).first;
    }
    return &it->second;
  }

  // Queues output under the lock, so that the order of the log is the order of the offsets. `done`
  // runs once it is written; not when this fails.
  absl::Status QueueOutput(std::string_view call_id, sandbox::Stream stream, uint64_t offset,
                           std::string_view data, uint64_t kept_bytes,
                           std::function<void(absl::Status)> done) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    ASSIGN_OR_RETURN(OutputState * state, LoadOutput(call_id));
    uint64_t& total =
        stream == sandbox::STREAM_STDERR ? state->totals.stderr_bytes : state->totals.stdout_bytes;
    if (offset > total) {
      return absl::InvalidArgumentError(
          fmt::format("output of call \"{}\" at {} leaves a gap after {}", call_id, offset, total));
    }
    if (offset + data.size() <= total) {  // already there, perhaps on its way: an empty batch waits
      store_->CommitAsync(storage::Batch(), storage::Sync::kLazy, std::move(done));
      return absl::OkStatus();
    }
    data.remove_prefix(total - offset);
    storage::Batch batch;
    while (!data.empty()) {
      journal::CallOutput chunk;
      chunk.set_stream(stream);
      chunk.set_offset(total);
      chunk.set_data(std::string(data.substr(0, kChunkBytes)));
      const size_t size = chunk.data().size();
      batch.Put(kOutput, IdNumberKey(call_id, state->next_sequence), chunk.SerializeAsString());
      state->chunks.emplace_back(state->next_sequence++, size);
      state->kept_bytes += size;
      total += size;
      data.remove_prefix(size);
    }
    while (state->kept_bytes > kept_bytes && state->chunks.size() > 1) {
      batch.Delete(kOutput, IdNumberKey(call_id, state->chunks.front().first));
      state->kept_bytes -= state->chunks.front().second;
      state->chunks.pop_front();
    }
    batch.Put(kTotals, call_id, EncodeTotals(state->totals));
    store_->CommitAsync(std::move(batch), storage::Sync::kLazy, std::move(done));
    return absl::OkStatus();
  }

  absl::StatusOr<OutputState*> LoadOutput(std::string_view call_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    auto it = outputs_.find(std::string(call_id));
    if (it != outputs_.end()) return &it->second;
    OutputState state;
    absl::StatusOr<std::string> totals = store_->Get(kTotals, call_id);
    if (totals.ok()) {
      if (totals->size() != 16) {
        return absl::DataLossError(fmt::format("output totals of call \"{}\" have {} bytes, not 16",
                                               call_id, totals->size()));
      }
      for (int i = 7; i >= 0; --i) {
        auto byte = [&](int at) {
          return static_cast<uint64_t>(static_cast<unsigned char>((*totals)[at]));
        };
        state.totals.stdout_bytes = (state.totals.stdout_bytes << 8) | byte(i);
        state.totals.stderr_bytes = (state.totals.stderr_bytes << 8) | byte(8 + i);
      }
      RETURN_IF_ERROR(
          store_->Scan(kOutput, IdPrefix(call_id),
                       [&](std::string_view key, std::string_view payload) -> absl::Status {
                         ASSIGN_OR_RETURN(journal::CallOutput chunk,
                                          Parse<journal::CallOutput>(payload, call_id));
                         state.chunks.emplace_back(NumberOfKey(key), chunk.data().size());
                         state.kept_bytes += chunk.data().size();
                         state.next_sequence = NumberOfKey(key) + 1;
                         return absl::OkStatus();
                       }));
    } else if (!absl::IsNotFound(totals.status())) {
      return totals.status();
    }
    return &outputs_.emplace(std::string(call_id), std::move(state)).first->second;
  }

  absl::StatusOr<std::string> OutputDigest(std::string_view call_id) {
    Sha256 hash;
    for (sandbox::Stream stream : {sandbox::STREAM_STDOUT, sandbox::STREAM_STDERR}) {
      RETURN_IF_ERROR(ReadOutput(call_id, [&](const journal::CallOutput& chunk) {
        if (chunk.stream() == stream) hash.Add(chunk.data());
        return absl::OkStatus();
      }));
    }
    return hash.Finish();
  }

  storage::Store* const store_;
  absl::Mutex mutex_;
  std::set<std::string> claimed_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, uint64_t> next_ordinal_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, OutputState> outputs_ ABSL_GUARDED_BY(mutex_);
  uint64_t forgotten_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

std::vector<std::string> CallLogFamilies() {
  return {"sandboxes", "calls", "results", "running", "order", "output", "totals", "snapshots"};
}

absl::StatusOr<std::unique_ptr<CallLog>> CallLog::Open(storage::Store* store) {
  auto log = std::make_unique<CallLogImpl>(store);
  RETURN_IF_ERROR(log->Running().status());
  return log;
}

}  // namespace reprise::replay
