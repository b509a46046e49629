// Runs a call of the log again, in a sandbox that was made anew, and compares what it does with
// what the log has: outcome, exit code, and every byte of output that was kept.
#pragma once

#include <functional>

#include "absl/status/status.h"
#include "replay/call_log.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

// `call` has a RESULT; `resolved` is its request as the tier takes it. FAILED_PRECONDITION
// "DIVERGED: call ...: ..." at the first difference, with both sides; what a log cannot make again
// (secrets, a call that did not come to its own end) is FAILED_PRECONDITION too. UNAVAILABLE once
// `stopping` says so.
absl::Status RunAgain(Substrate* substrate, const SandboxRef& sandbox, replay::CallLog* log,
                      const replay::CallLog::Found& call, const sandbox::ExecuteRequest& resolved,
                      const std::function<bool()>& stopping);

// Whether nothing that the call did is in its sandbox now, or ever was.
bool LeftNothing(const sandbox::Result& result);

}  // namespace reprise::sandboxd
