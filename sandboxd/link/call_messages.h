// A call in the words of the daemon and in those of the agent.
#pragma once

#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/agent/protocol.h"

namespace reprise::sandboxd {

namespace sandbox = ::reprise::sandbox::v1;

// `request` with its limits resolved. Its files and the bytes of its standard input go other ways.
agent::Start ToStart(const sandbox::ExecuteRequest& request);

// What the agent saw. Memory and filters that it cannot see are added by the tier.
sandbox::Result ToResult(const agent::End& end);

}  // namespace reprise::sandboxd
