// The call log of sandboxd: what every call was asked (INTENT), what it wrote (OUTPUT) and how it
// ended (RESULT), and the promise that a call_id runs at most once. Format: replay/FORMAT.md.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/journal/v1/journal.pb.h"
#include "storage/store.h"

namespace reprise::replay {

namespace journal = ::reprise::journal::v1;
namespace sandbox = ::reprise::sandbox::v1;

// The column families that a call log needs, for StoreOptions::families.
std::vector<std::string> CallLogFamilies();

// SHA-256 over the parts of a request that say what runs: everything but call_id and span, with the
// values of secret variables replaced by their SHA-256.
std::string RequestDigest(const sandbox::ExecuteRequest& request);

// `request` as it may be written down: secret values replaced by "sha256:<hex>".
sandbox::ExecuteRequest RedactSecrets(const sandbox::ExecuteRequest& request);

class CallLog {
 public:
  // `store` outlives this. Reads which calls are running.
  static absl::StatusOr<std::unique_ptr<CallLog>> Open(storage::Store* store);
  virtual ~CallLog() = default;

  // ---- sandboxes
  virtual absl::Status PutSandbox(const journal::SandboxRecord& record) = 0;  // durable on return
  virtual absl::StatusOr<journal::SandboxRecord> GetSandbox(std::string_view id) = 0;
  virtual absl::StatusOr<std::vector<journal::SandboxRecord>> ListSandboxes() = 0;

  // ---- snapshots
  virtual absl::Status PutSnapshot(const journal::SnapshotRecord& record) = 0;  // durable on return
  // Forgets one; durable on return. OK when it is not there.
  virtual absl::Status DropSnapshot(std::string_view sandbox_id, uint64_t number) = 0;
  // Of one sandbox, by number; of all sandboxes for "".
  virtual absl::StatusOr<std::vector<journal::SnapshotRecord>> ListSnapshots(
      std::string_view sandbox_id) = 0;

  // ---- calls
  struct Found {
    journal::CallIntent intent;
    std::optional<journal::CallResult> result;  // absent while RUNNING
  };
  // NOT_FOUND when the id was never used. FAILED_PRECONDITION "divergence: <field> differs: was X,
  // is Y" when it was used with a request of another digest, naming the first field (in proto
  // order) that differs.
  virtual absl::StatusOr<Found> Find(const sandbox::ExecuteRequest& request) = 0;
  // The same by id alone.
  virtual absl::StatusOr<Found> FindById(std::string_view call_id) = 0;

  // Claims the id and writes INTENT; durable on return. ALREADY_EXISTS when another caller was
  // first (then Find). Fills ordinal, digest, time and durability; the caller sets request (with
  // its secrets: they are redacted here, after the digest was taken), placement and boot_id.
  virtual absl::StatusOr<journal::CallIntent> Begin(journal::CallIntent intent) = 0;

  // Moves a running call to another placement and drops its output; durable on return. Only for a
  // call of which nothing ran, or which its caller allowed to run again. NOT_FOUND; ALREADY_EXISTS
  // when it has a RESULT.
  virtual absl::Status Rebind(std::string_view call_id, std::string_view placement,
                              std::string_view boot_id) = 0;

  // Appends output. On return it is written, and so outlives this process; it is durable with the
  // next durable record. Only then may its owner forget it. Older chunks are dropped once more than
  // `kept_bytes` (over both streams) are stored. `data` may be of any size; it is cut into chunks
  // of at most 64 KiB.
  virtual absl::Status AppendOutput(std::string_view call_id, sandbox::Stream stream,
                                    uint64_t offset, std::string_view data,
                                    uint64_t kept_bytes) = 0;
  // Bytes of each stream that are in the log or were dropped by the cap: where to go on after a
  // restart.
  struct Offsets {
    uint64_t stdout_bytes = 0, stderr_bytes = 0;
  };
  virtual absl::StatusOr<Offsets> OutputOffsets(std::string_view call_id) = 0;
  // Kept output in the order in which it came.
  virtual absl::Status ReadOutput(
      std::string_view call_id,
      const std::function<absl::Status(const journal::CallOutput&)>& visit) = 0;

  // Writes RESULT; durable on return. ALREADY_EXISTS when the call has one.
  virtual absl::Status Complete(std::string_view call_id, const sandbox::Result& result) = 0;

  // All calls without a RESULT, in the order of their INTENT: what a restarted daemon has to look
  // after.
  virtual absl::StatusOr<std::vector<journal::CallIntent>> Running() = 0;
  // Calls of one sandbox that were begun: the ordinal of the next one.
  virtual absl::StatusOr<uint64_t> CountCalls(std::string_view sandbox_id) = 0;
  // Forgets a sandbox with its calls and their output; durable on return. From then on its ids are
  // as if they had never been used. NOT_FOUND; FAILED_PRECONDITION when a call has no RESULT, or a
  // snapshot of it is kept.
  virtual absl::Status Forget(std::string_view sandbox_id) = 0;
  // Calls of one sandbox in log order.
  virtual absl::StatusOr<std::vector<Found>> ListCalls(std::string_view sandbox_id) = 0;
};

}  // namespace reprise::replay
