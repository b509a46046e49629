// `reprise sandbox watch`: a line for each thing that happens in a directory of a sandbox.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/status_macros.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/output.h"
#include "clients/cli/sandbox_verbs.h"
#include "clients/cli/wire_json.h"

namespace reprise::cli {

absl::StatusOr<int> WatchSandbox(const Context& context, const SandboxOptions& options) {
  sandbox_wire::WatchRequest request;
  request.set_sandbox_id(options.id);
  request.set_path(options.from);
  request.set_recursive(options.recursive);
  std::unique_ptr<SandboxApi> api;  // outlives the watcher of signals
  Interrupt interrupt;
  ASSIGN_OR_RETURN(api, SandboxApi::Connect(options.target));
  interrupt.Watch([&] { api->CancelWatch(); });
  int left = options.events_max;
  const absl::Status ended = api->Watch(request, [&](const sandbox_wire::WatchEvent& event) {
    const std::string kind = WatchKindName(event.kind());
    if (context.json) {
      PrintJson({{"kind", kind}, {"path", event.path()}});
    } else {
      Print(event.path().empty() ? fmt::format("{}\n", kind)
                                 : fmt::format("{} {}\n", kind, event.path()));
    }
    if (event.kind() == sandbox_wire::WATCH_EVENT_KIND_STARTED || options.events_max == 0)
      return true;
    return --left > 0;
  });
  if (interrupt.interrupted()) return kExitDone;
  RETURN_IF_ERROR(ended);
  return kExitDone;
}

}  // namespace reprise::cli
