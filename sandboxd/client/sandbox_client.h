// A blocking client of sandboxd for C++ programs, with the one thing that callers get wrong by
// hand: trying again. A daemon that restarts answers UNAVAILABLE for a while; because a call_id
// runs at most once, sending the same request again is always safe, and the answer is the one that
// the first try would have had.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::sandboxd {

namespace sandbox = ::reprise::sandbox::v1;

struct ClientOptions {
  std::string address;                // as sandboxd's --listen, e.g. "unix:/state/sandboxd.sock"
  std::string token;                  // for TCP addresses
  size_t output_bytes_max = 1 << 20;  // kept of each stream in Finished; its end is kept
  absl::Duration backoff_min = absl::Milliseconds(20), backoff_max = absl::Seconds(1);
  // How long nothing may listen at the address before a request is given up with UNAVAILABLE.
  absl::Duration unreachable_max = absl::InfiniteDuration();
};

class SandboxClient {
 public:
  // Connects when the first request needs it. INVALID_ARGUMENT for an address that is none.
  static absl::StatusOr<std::unique_ptr<SandboxClient>> Connect(const ClientOptions& options);
  virtual ~SandboxClient() = default;

  // Each retries UNAVAILABLE until `deadline`, or for unreachable_max while nobody listens, then
  // gives back the last error. A Create without an
  // id gets one here, so that its retry finds what it made.
  virtual absl::StatusOr<sandbox::CreateResponse> Create(sandbox::CreateRequest request,
                                                         absl::Time deadline) = 0;
  virtual absl::StatusOr<sandbox::Sandbox> Get(const std::string& sandbox_id,
                                               absl::Time deadline) = 0;
  virtual absl::StatusOr<sandbox::StopResponse> Stop(const std::string& sandbox_id,
                                                     absl::Time deadline) = 0;
  virtual absl::Status Forget(const std::string& sandbox_id, absl::Time deadline) = 0;
  virtual absl::Status Pause(const std::string& sandbox_id, absl::Time deadline) = 0;
  // A request without an id gets one here, as Create's.
  virtual absl::StatusOr<sandbox::SnapshotInfo> Snapshot(sandbox::SnapshotRequest request,
                                                         absl::Time deadline) = 0;
  virtual absl::StatusOr<sandbox::CreateResponse> Fork(sandbox::ForkRequest request,
                                                       absl::Time deadline) = 0;
  virtual absl::StatusOr<sandbox::RestoreResponse> Restore(const std::string& sandbox_id,
                                                           absl::Time deadline) = 0;
  virtual absl::StatusOr<sandbox::ListResponse> List(absl::Time deadline) = 0;
  virtual absl::StatusOr<sandbox::ListCallsResponse> ListCalls(const std::string& sandbox_id,
                                                               absl::Time deadline) = 0;
  virtual absl::StatusOr<sandbox::ListTiersResponse> ListTiers(absl::Time deadline) = 0;
  virtual absl::Status Cancel(const std::string& call_id, absl::Time deadline) = 0;

  struct Finished {
    std::string call_id;
    sandbox::Result result;  // replayed is set when the journal answered
    std::string out, err;    // the last output_bytes_max bytes of each stream that the journal kept
    bool output_cut = false;  // out or err is not all that was sent
  };
  // Output as it comes, each byte once and in order per stream, whatever is tried again. After an
  // INTERRUPT_POLICY_RERUN the two runs are not told apart: take Finished where that matters.
  using OnOutput =
      std::function<void(sandbox::Stream stream, uint64_t offset, std::string_view data)>;
  // Runs a call to its end. A request without a call_id gets one here, so that a retry is the same
  // call. DEADLINE_EXCEEDED: the call goes on; send the same request again to get its result.
  virtual absl::StatusOr<Finished> ExecuteToEnd(sandbox::ExecuteRequest request,
                                                absl::Time deadline,
                                                const OnOutput& on_output = nullptr) = 0;
  // Ends every request that waits, with CANCELLED, from any thread; the client is of no use
  // afterwards.
  virtual void Shutdown() = 0;
};

}  // namespace reprise::sandboxd
