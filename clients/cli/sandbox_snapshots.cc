// `reprise sandbox snapshot | snapshots | fork | restore`.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/format.h"
#include "base/status_macros.h"
#include "clients/cli/output.h"
#include "clients/cli/sandbox_verbs.h"
#include "clients/cli/wire_json.h"

namespace reprise::cli {
namespace {

Json ToJson(const sandbox_wire::SnapshotInfo& snapshot) {
  return {{"sandbox_id", snapshot.sandbox_id()},
          {"snapshot_id", snapshot.snapshot_id()},
          {"image", cli::ToJson(snapshot.image())},
          {"calls", snapshot.calls()},
          {"quiet", snapshot.quiet()},
          {"made_us", snapshot.made_us()},
          {"stored_bytes", snapshot.stored_bytes()},
          {"call_id", snapshot.call_id()},
          {"existed", snapshot.existed()}};
}

}  // namespace

absl::StatusOr<int> SnapshotSandbox(const Context& context, const SandboxOptions& options) {
  sandbox_wire::SnapshotRequest request;
  request.set_sandbox_id(options.id);
  request.set_snapshot_id(options.call_id);
  request.set_name(options.to);
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  ASSIGN_OR_RETURN(sandbox_wire::SnapshotInfo snapshot, api->Snapshot(request));
  if (context.json) {
    PrintJson(ToJson(snapshot));
    return kExitDone;
  }
  Print(fmt::format("{} {}: {} layers, {}, {} of it new, {}\n",
                    snapshot.existed() ? "it was there already:" : "kept as",
                    snapshot.image().name(), snapshot.image().layers(),
                    HumanBytes(snapshot.image().size_bytes()), HumanBytes(snapshot.stored_bytes()),
                    snapshot.image().digest()));
  return kExitDone;
}

absl::StatusOr<int> ListSandboxSnapshots(const Context& context, const SandboxOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  ASSIGN_OR_RETURN(sandbox_wire::ListSnapshotsResponse list, api->ListSnapshots(options.id));
  if (context.json) {
    Json out = Json::array();
    for (const auto& snapshot : list.snapshots()) out.push_back(ToJson(snapshot));
    PrintJson(out);
    return kExitDone;
  }
  Table table({"SNAPSHOT", "IMAGE", "AFTER CALLS", "MADE", "NEW", "TAKEN FOR"});
  for (const auto& snapshot : list.snapshots()) {
    table.Add({snapshot.snapshot_id(), snapshot.image().name(), Count(snapshot.calls()),
               LocalTime(snapshot.made_us()), HumanBytes(snapshot.stored_bytes()),
               snapshot.call_id()});
  }
  Print(table.empty() ? fmt::format("no snapshots: `{} sandbox snapshot {}` takes one\n",
                                    context.program, ShellQuote(options.id))
                      : table.Render());
  return kExitDone;
}

absl::StatusOr<int> ForkSandbox(const Context& context, const SandboxOptions& options) {
  sandbox_wire::ForkRequest request;
  request.set_sandbox_id(options.id);
  request.set_new_id(options.to);
  *request.mutable_limits() = options.spec.limits();
  RETURN_IF_ERROR(AddEnv(options.env, /*secret=*/false, request.mutable_env()));
  RETURN_IF_ERROR(AddEnv(options.secrets, /*secret=*/true, request.mutable_env()));
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  ASSIGN_OR_RETURN(sandbox_wire::CreateResponse made, api->Fork(request));
  if (context.json) {
    Json out = cli::ToJson(made.sandbox());
    out["existed"] = made.existed();
    PrintJson(out);
    return kExitDone;
  }
  // The id alone, as `create` prints it.
  Print(made.sandbox().id() + "\n");
  return kExitDone;
}

absl::StatusOr<int> RestoreSandbox(const Context& context, const SandboxOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  ASSIGN_OR_RETURN(sandbox_wire::RestoreResponse restored, api->Restore(options.id));
  if (context.json) {
    PrintJson({{"sandbox", cli::ToJson(restored.sandbox())},
               {"snapshot_id", restored.snapshot_id()},
               {"run_again", restored.run_again()},
               {"was_lost", restored.was_lost()}});
    return kExitDone;
  }
  if (!restored.was_lost()) {
    Print(fmt::format("{} was not lost\n", options.id));
    return kExitDone;
  }
  Print(fmt::format(
      "{} is back, from {}: {} calls run again, each with its stored result\n", options.id,
      restored.snapshot_id().empty() ? "its image"
                                     : fmt::format("snapshot {}", restored.snapshot_id()),
      Count(restored.run_again())));
  return kExitDone;
}

}  // namespace reprise::cli
