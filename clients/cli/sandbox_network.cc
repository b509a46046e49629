// `reprise sandbox network`.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/format.h"
#include "base/status_macros.h"
#include "clients/cli/output.h"
#include "clients/cli/sandbox_verbs.h"

namespace reprise::cli {
namespace {

Json ToJson(const sandbox_wire::GetNetworkResponse& network) {
  const sandbox_wire::NetworkCounters& counters = network.counters();
  Json out = {{"network", nullptr},
              {"counters",
               {{"allowed", counters.allowed()},
                {"refused", counters.refused()},
                {"cut", counters.cut()},
                {"names_answered", counters.names_answered()},
                {"names_refused", counters.names_refused()}}}};
  if (!network.has_network()) return out;
  Json allow = Json::array(), deny = Json::array();
  for (const std::string& rule : network.network().allow()) allow.push_back(rule);
  for (const std::string& rule : network.network().deny()) deny.push_back(rule);
  out["network"] = {{"allow", allow}, {"deny", deny}, {"open", network.network().open()}};
  return out;
}

std::string Text(const sandbox_wire::GetNetworkResponse& network) {
  if (!network.has_network()) return "it has no network\n";
  std::string text;
  for (const std::string& rule : network.network().allow())
    text += fmt::format("allow  {}\n", rule);
  for (const std::string& rule : network.network().deny()) text += fmt::format("deny   {}\n", rule);
  if (network.network().open()) {
    text += "open   every public address\n";
  } else if (text.empty()) {
    text += "nothing is reachable\n";
  }
  Facts facts;
  const sandbox_wire::NetworkCounters& counters = network.counters();
  facts.Add("connections", fmt::format("{} allowed, {} refused, {} cut", Count(counters.allowed()),
                                       Count(counters.refused()), Count(counters.cut())));
  facts.Add("names", fmt::format("{} answered, {} refused", Count(counters.names_answered()),
                                 Count(counters.names_refused())));
  return text + facts.Render();
}

}  // namespace

absl::StatusOr<int> NetworkOfSandbox(const Context& context, const SandboxOptions& options) {
  const sandbox_wire::NetworkPolicy& policy = options.network;
  const bool given = policy.allow_size() > 0 || policy.deny_size() > 0 || policy.open();
  if (given && options.no_network)
    return UsageError("--none and rules contradict each other: give one of them");
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  if (given || options.no_network) {
    sandbox_wire::SetNetworkRequest request;
    request.set_sandbox_id(options.id);
    *request.mutable_network() = policy;
    RETURN_IF_ERROR(api->SetNetwork(request));
  }
  ASSIGN_OR_RETURN(const sandbox_wire::GetNetworkResponse network, api->GetNetwork(options.id));
  if (context.json) {
    PrintJson(ToJson(network));
  } else {
    Print(Text(network));
  }
  return kExitDone;
}

}  // namespace reprise::cli
