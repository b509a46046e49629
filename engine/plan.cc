#include "engine/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "base/status_macros.h"
#include "engine/checkpoint.h"

namespace reprise::engine {
namespace {

// How a tensor is divided.
enum class Division { kCommon, kExperts, kGroups, kRows, kVocabulary };

Division DivisionOf(std::string_view name) {
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  if (has(".ffn.experts.")) return Division::kExperts;
  if (has(".attn.wq_b.") || has(".attn.attn_sink") || has(".attn.wo_a.")) return Division::kGroups;
  if (has(".attn.wo_b.")) return Division::kRows;
  if (name == "head.weight") return Division::kVocabulary;
  return Division::kCommon;
}

int64_t DivideUp(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Bytes of `all`, which has `parts` equal parts, on the device with the most of `ranks`.
int64_t Fullest(int64_t all, int64_t parts, int64_t ranks) {
  return DivideUp(all * DivideUp(parts, ranks), parts);
}

}  // namespace

absl::StatusOr<ModelPlan> PlanModel(const std::string& directory, const PlanRequest& request) {
  ASSIGN_OR_RETURN(const ModelInfo info, ReadModelInfo(directory));
  RETURN_IF_ERROR(info.usable);
  const ModelConfig& c = info.config;
  if (request.devices < 1 || request.device_bytes < 1 || request.reserved_bytes < 0) {
    return absl::InvalidArgumentError(
        fmt::format("{} devices of {} bytes, {} reserved; possible: 1 or more, 0 or more reserved",
                    request.devices, request.device_bytes, request.reserved_bytes));
  }
  if (request.context < 1 || request.context > c.max_context) {
    return absl::InvalidArgumentError(
        fmt::format("a context of {} tokens; possible: 1 to {}", request.context, c.max_context));
  }
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(directory));
  ModelPlan plan;
  int64_t groups = 0, rows = 0, vocabulary = 0;
  for (const auto& [name, view] : checkpoint->tensors()) {
    if (name.rfind("mtp.", 0) == 0) continue;
    const auto bytes = static_cast<int64_t>(view.bytes);
    switch (DivisionOf(name)) {
      case Division::kExperts:
        plan.expert_bytes += bytes;
        break;
      case Division::kGroups:
        groups += bytes;
        break;
      case Division::kRows:
        rows += bytes;
        break;
      case Division::kVocabulary:
        vocabulary += bytes;
        break;
      case Division::kCommon:
        plan.common_bytes += bytes;
        break;
    }
  }
  plan.divided_bytes = groups + rows + vocabulary;
  plan.sequence_bytes = info.KvBytes(request.context);
  const int64_t experts = Fullest(plan.expert_bytes, c.num_experts, request.devices);
  for (int64_t ranks = 1; ranks <= std::min(request.devices, c.o_groups); ++ranks) {
    if (request.devices % ranks != 0) continue;
    Placement& at = plan.placements.emplace_back();
    at.group_ranks = ranks;
    at.groups = request.devices / ranks;
    at.weight_bytes = plan.common_bytes + experts + Fullest(groups, c.o_groups, ranks) +
                      Fullest(rows, c.hidden_size, ranks) +
                      Fullest(vocabulary, c.vocab_size, ranks);
    at.kv_bytes = request.device_bytes - request.reserved_bytes - at.weight_bytes;
    at.sequences = std::max<int64_t>(0, at.kv_bytes) / plan.sequence_bytes * at.groups;
  }
  // Of those for as many sequences, that with the most room: its sequences can grow.
  std::sort(
      plan.placements.begin(), plan.placements.end(), [](const Placement& a, const Placement& b) {
        return a.sequences != b.sequences ? a.sequences > b.sequences : a.kv_bytes > b.kv_bytes;
      });
  return plan;
}

}  // namespace reprise::engine
