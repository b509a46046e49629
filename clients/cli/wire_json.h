// Messages of the daemons as the JSON that `--json` prints: field names as in the protos, numbers
// as numbers, enums as lower-case words.
#pragma once

#include <string>
#include <string_view>

#include "clients/cli/output.h"
#include "reprise/rollout/v1/rollout.pb.h"
#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::cli {

namespace rollout_wire = ::reprise::rollout::v1;
namespace sandbox_wire = ::reprise::sandbox::v1;

Json ToJson(const rollout_wire::Job& job);
Json ToJson(const rollout_wire::WeightVersion& version);
Json ToJson(const rollout_wire::Trajectory& trajectory);  // without log and record
Json ToJson(const sandbox_wire::Sandbox& sandbox);
Json ToJson(const sandbox_wire::Result& result);
Json ToJson(const sandbox_wire::Limits& limits);
Json ToJson(const sandbox_wire::TierInfo& tier);
Json ToJson(const sandbox_wire::CallSummary& call);
Json ToJson(const sandbox_wire::Image& image);

// "function", "container", "microvm", "vm".
std::string TierName(sandbox_wire::Tier tier);
// "exited", "timed_out", ...
std::string OutcomeName(sandbox_wire::Outcome outcome);
// "running", "paused", "stopped", "lost".
std::string StateName(sandbox_wire::SandboxState state);
// "started", "created", "overflow", ...
std::string WatchKindName(sandbox_wire::WatchEventKind kind);

// Output bytes under `name`; where they are no UTF-8 also as they are, under `name`_base64.
void PutBytes(Json* object, const std::string& name, std::string_view bytes);

}  // namespace reprise::cli
