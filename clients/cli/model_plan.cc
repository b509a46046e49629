// `reprise model plan`.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/format.h"
#include "base/status_macros.h"
#include "clients/cli/model_verbs.h"
#include "clients/cli/output.h"
#include "engine/plan.h"

namespace reprise::cli {
namespace {

std::string Bytes(int64_t bytes) { return HumanBytes(static_cast<uint64_t>(bytes)); }

Json ToJson(const engine::ModelPlan& plan) {
  Json placements = Json::array();
  for (const engine::Placement& at : plan.placements) {
    placements.push_back({{"group_ranks", at.group_ranks},
                          {"groups", at.groups},
                          {"weight_bytes", at.weight_bytes},
                          {"kv_bytes", at.kv_bytes},
                          {"sequences", at.sequences}});
  }
  return {{"expert_bytes", plan.expert_bytes},
          {"divided_bytes", plan.divided_bytes},
          {"common_bytes", plan.common_bytes},
          {"sequence_bytes", plan.sequence_bytes},
          {"placements", placements}};
}

}  // namespace

absl::StatusOr<int> PlanModel(const Context& context, const ModelOptions& options) {
  engine::PlanRequest request;
  request.devices = options.devices;
  request.device_bytes = static_cast<int64_t>(options.device_bytes);
  request.reserved_bytes = static_cast<int64_t>(options.reserved_bytes);
  request.context = options.context;
  ASSIGN_OR_RETURN(const engine::ModelPlan plan, engine::PlanModel(options.directory, request));
  const engine::Placement& best = plan.placements.front();
  if (context.json) {
    PrintJson(ToJson(plan));
    return best.sequences > 0 ? kExitDone : kExitFailed;
  }
  if (best.sequences == 0) {
    return absl::FailedPreconditionError(fmt::format(
        "nothing fits: a device of {} with {} reserved has to hold {} of weights and {} for one "
        "sequence of {} tokens, {} more than it has; give more or larger devices, or fewer tokens",
        Bytes(request.device_bytes), Bytes(request.reserved_bytes), Bytes(best.weight_bytes),
        Bytes(plan.sequence_bytes), request.context, Bytes(plan.sequence_bytes - best.kv_bytes)));
  }
  Facts facts;
  facts.Add("routed experts",
            fmt::format("{}, divided among all devices", Bytes(plan.expert_bytes)));
  facts.Add("attention and head",
            fmt::format("{}, divided within a group", Bytes(plan.divided_bytes)));
  facts.Add("all else", fmt::format("{}, on every device", Bytes(plan.common_bytes)));
  facts.Add(fmt::format("KV of {} tokens", request.context), Bytes(plan.sequence_bytes));
  Table table({"groups", "devices each", "weights a device", "left for KV", "sequences"});
  for (const engine::Placement& at : plan.placements) {
    table.Add({std::to_string(at.groups), std::to_string(at.group_ranks), Bytes(at.weight_bytes),
               at.kv_bytes < 0 ? fmt::format("lacks {}", Bytes(-at.kv_bytes)) : Bytes(at.kv_bytes),
               std::to_string(at.sequences)});
  }
  Print(facts.Render() + table.Render());
  return kExitDone;
}

}  // namespace reprise::cli
