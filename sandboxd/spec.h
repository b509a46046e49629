// Specs as they are written down, shown and compared.
#pragma once

#include <string>

#include "replay/call_log.h"
#include "reprise/journal/v1/journal.pb.h"
#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::sandboxd {

namespace sandbox = ::reprise::sandbox::v1;

// Secret values replaced by "sha256:<hex>", as the journal holds them.
sandbox::SandboxSpec RedactSpec(const sandbox::SandboxSpec& spec);

// The first field, in proto order, in which two redacted specs differ, with both values; "" when
// none does.
std::string FirstDifference(const sandbox::SandboxSpec& was, const sandbox::SandboxSpec& is);

// The spec that the sandbox has now: as it was made, with the network that it was given since.
sandbox::SandboxSpec CurrentSpec(const replay::journal::SandboxRecord& record);

// `record` as clients see it: secret values left out.
sandbox::Sandbox ToSandbox(const replay::journal::SandboxRecord& record);

// The overrides of a fork.
void Merge(const sandbox::ForkRequest& request, sandbox::SandboxSpec* spec);

// It can be used, now or when it is thawed.
inline bool IsLive(sandbox::SandboxState state) {
  return state == sandbox::SANDBOX_STATE_RUNNING || state == sandbox::SANDBOX_STATE_PAUSED;
}

}  // namespace reprise::sandboxd
