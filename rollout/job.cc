#include "rollout/job.h"

#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "rollout/identity.h"
#include "rollout/job_parts.h"
#include "rollout/text.h"

namespace reprise::rollout {
namespace {

// Collects what the digest covers, each part behind its length.
class DigestInput {
 public:
  void Add(std::string_view part) { text_ += fmt::format("{}\n{}", part.size(), part); }
  std::string Sum() const { return Sha256(text_); }

 private:
  std::string text_ = "reprise.job.v1\n";
};

absl::StatusOr<std::string> ReadNamed(Fields& fields, const std::string& key,
                                      const std::string& path, uint64_t max_bytes) {
  auto content = base::ReadFile(path, max_bytes);
  if (content.ok()) return content;
  return absl::Status(content.status().code(),
                      fmt::format("{}: {}: {}", fields.where(), key, Message(content.status())));
}

// The definition of one [[tools]] table: a file, or put together from its keys.
absl::StatusOr<std::string> ReadDefinition(Fields& fields, const std::string& directory) {
  if (fields.Has("definition")) {
    for (const char* key : {"name", "description", "parameters"}) {
      if (fields.Has(key)) fields.Fail(key, "stands beside definition, allowed: one of the two");
    }
    std::string path = FromDirectory(directory, fields.String("definition"));
    return ReadNamed(fields, "tools.definition", path, kMaxToolFileBytes);
  }
  std::string name = fields.String("name");
  std::string description = fields.String("description", "");
  std::string parameters = fields.String("parameters", R"({"type": "object", "properties": {}})");
  auto schema = ParseJson(parameters);
  if (!schema.ok()) {
    fields.Fail("parameters", fmt::format("is {}", Message(schema.status())));
    return std::string();
  }
  Json function = {{"name", name}, {"description", description}, {"parameters", *schema}};
  return Json{{"type", "function"}, {"function", function}}.dump();
}

absl::Status ReadTool(Fields& fields, const std::string& directory, DigestInput* digest,
                      JobSpec* job) {
  ASSIGN_OR_RETURN(std::string definition, ReadDefinition(fields, directory));
  std::vector<std::string> command = fields.Strings("command", 1, true);
  std::string stdin_template = fields.String("stdin", "");
  sandbox::Limits limits;
  if (auto table = fields.Table("limits")) {
    ASSIGN_OR_RETURN(limits, ReadLimits(*table, {}));
  }
  RETURN_IF_ERROR(fields.Finish());
  digest->Add(definition);
  auto tool = Tool::Make(definition, command, stdin_template, limits);
  if (!tool.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {}", fields.where(), Message(tool.status())));
  }
  for (const Tool& other : job->tools) {
    if (other.name() == tool->name()) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tool \"{}\" is there twice", fields.where(), tool->name()));
    }
  }
  job->tools.push_back(*std::move(tool));
  return absl::OkStatus();
}

void ReadOnInvalid(Fields& fields, JobSpec* job) {
  const std::string what = fields.OneOf("on_invalid", {"mask", "drop_group", "replace"}, "mask");
  if (what == "drop_group") job->on_invalid = OnInvalid::kDropGroup;
  if (what == "replace") job->on_invalid = OnInvalid::kReplace;
  const bool replace = job->on_invalid == OnInvalid::kReplace;
  if (fields.Has("replacements") && !replace)
    fields.Fail("replacements", "stands without on_invalid = \"replace\"");
  job->replacements = fields.Int("replacements", 1, kMaxReplacements, replace ? 3 : 0);
}

void ReadTop(Fields& fields, const std::string& directory, const std::string& job_id,
             JobSpec* job) {
  job->id = fields.String("id", job_id.empty() ? std::nullopt : std::optional(job_id));
  if (!job_id.empty()) job->id = job_id;
  absl::Status id = base::CheckId(job->id, "id");
  if (!id.ok() || job->id.size() > kMaxJobIdBytes) {
    fields.Fail("id", fmt::format("is \"{}\", allowed: 1..{} letters, digits, . _ -", job->id,
                                  kMaxJobIdBytes));
  }
  job->model_dir = FromDirectory(directory, fields.String("model"));
  job->tasks_path = FromDirectory(directory, fields.String("tasks"));
  job->first = fields.Int("first", 0, kMaxGroups, 0);
  job->limit = fields.Int("limit", 0, kMaxGroups, 0);
  job->group_size = static_cast<uint32_t>(fields.Int("group_size", 1, kMaxGroupSize, 1));
  job->priority = fields.Int("priority", -100, 100, 0);
  job->seed = static_cast<uint64_t>(fields.Int("seed", 0, INT64_MAX, 0));
  auto mode = engine::ParseThinkingMode(fields.OneOf("thinking", {"chat", "thinking"}, "thinking"));
  if (mode.ok()) job->mode = *mode;
  auto effort = engine::ParseEffort(fields.OneOf("effort", {"none", "high", "max"}, "none"));
  if (effort.ok()) job->effort = *effort;
  ReadOnInvalid(fields, job);
  const std::string retention =
      fields.OneOf("retention", {"daemon", "keep", "export", "drop"}, "daemon");
  if (retention == "keep") job->retention = Retention::kKeep;
  if (retention == "export") job->retention = Retention::kExport;
  if (retention == "drop") job->retention = Retention::kDrop;
}

void ReadSampling(Fields& fields, JobSpec* job) {
  job->temperature = static_cast<float>(fields.Number("temperature", 0, 100, false, 1.0));
  job->top_p = static_cast<float>(fields.Number("top_p", 0, 1, true, 1.0));
  job->top_k = static_cast<int32_t>(fields.Int("top_k", 0, INT32_MAX, 0));
  job->min_p = static_cast<float>(fields.Number("min_p", 0, 1, false, 0));
  job->structured = fields.Bool("structured", false);
  if (fields.Has("tool_choice") && !job->structured)
    fields.Fail("tool_choice", "stands without structured = true");
  job->tool_choice = fields.String("tool_choice", "auto");
}

void ReadJobLimits(Fields& fields, JobSpec* job) {
  constexpr int64_t kMaxTokens = 16'000'000;
  job->max_tokens = fields.Int("max_tokens", 1, kMaxTokens, 4096);
  job->max_turns = fields.Int("max_turns", 1, 100'000, 32);
  job->max_tool_calls = fields.Int("max_tool_calls", 0, 100'000, 64);
  job->max_context = fields.Int("max_context", 0, kMaxTokens, 0);
  job->tool_result_bytes = fields.Int("tool_result_bytes", 64, 16 << 20, 16384);
  job->max_in_flight = fields.Int("max_in_flight", 1, kMaxInFlight, 32);
  job->max_unacknowledged = fields.Int("max_unacknowledged", 0, kMaxGroups, 0);
}

void ReadWeightsPolicy(Fields& fields, JobSpec* job) {
  job->weights.drain = fields.OneOf("running", {"continue", "drain"}, "continue") == "drain";
  job->weights.keep_kv = fields.OneOf("kv", {"keep", "recompute"}, "keep") == "keep";
  job->weights.max_staleness = fields.Int("max_staleness", -1, 1'000'000, -1);
}

}  // namespace

absl::StatusOr<std::unique_ptr<JobSpec>> LoadJob(std::string_view toml,
                                                 const std::string& directory,
                                                 const std::string& name,
                                                 const std::string& job_id) {
  ASSIGN_OR_RETURN(Json json, ParseToml(toml, name));
  auto job = std::make_unique<JobSpec>();
  Json empty = Json::object();
  Fields top(json, name, "");
  DigestInput digest;
  digest.Add(toml);

  ReadTop(top, directory, job_id, job.get());
  Fields sampling = top.Table("sampling").value_or(Fields(empty, name, "sampling"));
  Fields limits = top.Table("limits").value_or(Fields(empty, name, "limits"));
  Fields output = top.Table("output").value_or(Fields(empty, name, "output"));
  Fields weights = top.Table("weights").value_or(Fields(empty, name, "weights"));
  Fields box = top.Table("sandbox").value_or(Fields(empty, name, "sandbox"));
  std::vector<Fields> tools = top.Tables("tools");
  std::optional<Fields> reward_table = top.Table("reward");
  RETURN_IF_ERROR(top.Finish());

  ReadSampling(sampling, job.get());
  RETURN_IF_ERROR(sampling.Finish());
  ReadJobLimits(limits, job.get());
  RETURN_IF_ERROR(limits.Finish());
  job->routed_experts = output.Bool("routed_experts", false);
  job->advantage = output.Bool("advantage", false);
  job->kept_ids = static_cast<int32_t>(output.Int("kept_ids", 0, kMaxKeptIds, 0));
  RETURN_IF_ERROR(output.Finish());
  ReadWeightsPolicy(weights, job.get());
  RETURN_IF_ERROR(weights.Finish());
  ASSIGN_OR_RETURN(sandbox::SandboxSpec sandbox, ReadSandbox(box, {}, directory));
  for (Fields& tool : tools) RETURN_IF_ERROR(ReadTool(tool, directory, &digest, job.get()));
  std::optional<RewardSpec> reward;
  if (reward_table) {
    ASSIGN_OR_RETURN(reward, ReadReward(*reward_table, directory));
  }

  if (!std::filesystem::is_directory(job->model_dir)) {
    return absl::NotFoundError(
        fmt::format("{}: model is \"{}\", which is no directory", name, job->model_dir));
  }
  ASSIGN_OR_RETURN(std::string tasks, ReadNamed(top, "tasks", job->tasks_path, kMaxTaskSetBytes));
  digest.Add(tasks);
  RETURN_IF_ERROR(ReadTasks(tasks, job->tasks_path, directory, sandbox, reward, job.get()));
  job->digest = digest.Sum();
  return job;
}

}  // namespace reprise::rollout
