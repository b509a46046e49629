// `reprise doctor`: what this machine can do, each thing found by trying it.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/fd.h"
#include "base/program_dir.h"
#include "base/status_macros.h"
#include "clients/cli/commands.h"
#include "clients/cli/host_facts.h"
#include "clients/cli/options.h"
#include "clients/cli/output.h"
#include "clients/cli/wire_json.h"
#include "sandboxd/substrate.h"
#include "sandboxd/tiers.h"

namespace reprise::cli {
namespace {

struct Options {
  std::string state = ".";
};

constexpr char kNetworkVerb[] = "network";

// The tiers describe themselves from a state directory of their own: nothing of a real one is
// touched, and no daemon has to run.
absl::StatusOr<std::vector<sandbox_wire::TierInfo>> AskTiers(sandboxd::DaemonOptions options,
                                                             const std::string& scratch) {
  options.state_dir = scratch;
  options.function_pool = 1;
  options.probe_machines = true;
  ASSIGN_OR_RETURN(options.helper_dir, base::ProgramDir());
  ASSIGN_OR_RETURN(auto tiers, sandboxd::MakeTiers(options));
  std::vector<sandbox_wire::TierInfo> out;
  for (const auto& tier : tiers) out.push_back(tier->Describe());
  for (const auto& tier : tiers) tier->Shutdown();
  return out;
}

absl::StatusOr<int> Doctor(const Context& context, const Options& options) {
  sandboxd::DaemonOptions daemon;
  // First, while this process has one thread: tiers fork.
  base::ScratchDir scratch("reprise-doctor");
  ASSIGN_OR_RETURN(std::vector<sandbox_wire::TierInfo> tiers, AskTiers(daemon, scratch.path()));
  std::vector<Fact> facts = HostFacts(options.state, daemon.containerd_address);
  facts.push_back(CudaFact());
  bool any = false;
  for (const auto& tier : tiers) any = any || tier.usable();
  if (context.json) {
    Json host = Json::object(), list = Json::array();
    for (const Fact& fact : facts) host[fact.name] = {{"good", fact.good}, {"value", fact.value}};
    for (const auto& tier : tiers) list.push_back(ToJson(tier));
    PrintJson({{"host", host}, {"tiers", list}});
    return any ? kExitDone : kExitFailed;
  }
  Facts host;
  for (const Fact& fact : facts) host.Add(fact.name, (fact.good ? "ok  " : "--  ") + fact.value);
  Table usable({"  TIER", "USABLE", "WITH, OR WHY NOT"});
  Facts networks;
  for (const auto& tier : tiers) {
    usable.Add({"  " + TierName(tier.tier()), tier.usable() ? "yes" : "no", tier.reason()});
    const auto network = tier.verbs().find(kNetworkVerb);
    if (!tier.usable() || network == tier.verbs().end()) continue;
    networks.Add(TierName(tier.tier()),
                 network->second == "yes" ? "ok  by policy" : "--  " + network->second);
  }
  Print(fmt::format("this machine\n{}\nsandboxes\n{}\nnetworks of sandboxes\n{}", host.Render(),
                    usable.Render(), networks.Render()));
  if (any) return kExitDone;
  return absl::UnavailableError("no tier is usable here: see the reasons above");
}

}  // namespace

void AddDoctorCommand(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* leaf = AddLeaf(app, "doctor", "show what this machine can do, and what it lacks",
                           context, [&context, options] { return Doctor(context, *options); });
  AddState(*leaf, options->state, "state directory whose disk is looked at");
}

}  // namespace reprise::cli
