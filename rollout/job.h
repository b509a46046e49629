// A job file (TOML, docs/jobs.md) and its task set (JSONL), read strictly. Everything that a
// rollout needs to know is in these two and in the tool definitions that they name; the job's
// digest covers all of it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/chat.h"
#include "engine/grammar.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "rollout/fields.h"
#include "rollout/retention_options.h"
#include "rollout/tool.h"

namespace reprise::rollout {

inline constexpr uint64_t kMaxJobFileBytes = 1 << 20;
inline constexpr uint64_t kMaxTaskSetBytes = 1ull << 30;
inline constexpr uint64_t kMaxToolFileBytes = 1 << 20;
inline constexpr int64_t kMaxGroupSize = 1024;
inline constexpr int64_t kMaxInFlight = 1024;
inline constexpr int64_t kMaxReplacements = 100;
inline constexpr int64_t kMaxKeptIds = 4096;

// What new weights mean for trajectories that run; a weight update may say otherwise.
struct WeightsPolicy {
  bool drain = false;   // they end under their old version, else they go on under the new one
  bool keep_kv = true;  // where they go on: their KV state stays, else it is made again
  int64_t max_staleness = -1;  // ended where their first token is more versions old; -1 = no bound
};

// What becomes of a group with a sample that cannot be used: it is delivered with that sample marked
// as invalid, it is delivered to nobody, or a fresh sample stands for it.
enum class OnInvalid { kMask, kDropGroup, kReplace };

// A judge that is somebody's HTTP service.
struct HttpJudge {
  std::string url;
  int64_t timeout_ms = 0;  // of one attempt
  int64_t attempts = 1;
  std::string token_file;  // its content is sent as a bearer token; "" = none
  std::string ca_file;     // PEM, instead of the system's roots; "" = those
};

// How a finished trajectory is judged.
struct RewardSpec {
  enum class Kind { kMatch, kCommand, kHttp } kind = Kind::kMatch;
  std::string answer;             // kMatch
  std::vector<std::string> argv;  // kCommand
  std::vector<std::pair<std::string, std::string>> env;
  sandbox::Limits limits;
  // kCommand: of a sandbox of its own; nullopt = the trajectory's sandbox.
  std::optional<sandbox::SandboxSpec> sandbox;
  HttpJudge http;  // kHttp
};

struct Task {
  std::string id;
  uint32_t group = 0;                // its place in the task set, from 0
  std::string messages_json;         // array
  std::string metadata_json = "{}";  // object
  std::string task_json;             // the whole line, for the reward's standard input
  std::string hash;                  // SHA-256 of the line as it stands in the file, hexadecimal
  std::vector<const Tool*> tools;    // into JobSpec::tools, in the job's order
  std::string tools_json;            // JSON array of their definitions; "" = none
  // What an assistant turn may be; nullptr: anything.
  std::shared_ptr<const engine::AnswerGrammar> first_turn, later_turns;
  sandbox::SandboxSpec sandbox;
  RewardSpec reward;
};

struct JobSpec {
  std::string id;
  std::string model_dir;  // absolute or as the job file's directory makes it
  std::string tasks_path;
  int64_t first = 0;  // first task that is used
  int64_t limit = 0;  // how many; 0 = all that follow
  uint32_t group_size = 1;
  uint64_t seed = 0;
  engine::ThinkingMode mode = engine::ThinkingMode::kThinking;
  engine::Effort effort = engine::Effort::kNone;

  float temperature = 1.0f;
  float top_p = 1.0f;
  int32_t top_k = 0;  // 0 = all
  float min_p = 0;
  bool structured = false;           // calls are forced to be well formed and to fit their schemas
  std::string tool_choice = "auto";  // of the first turn; likewise "required", or a tool's name

  int64_t max_tokens = 0;  // after the prompt, sampled and fed
  int64_t max_turns = 0;
  int64_t max_tool_calls = 0;
  int64_t max_context = 0;  // 0 = the model's
  int64_t tool_result_bytes = 0;
  int64_t max_in_flight = 0;
  int64_t max_unacknowledged = 0;  // groups; 0 = no bound
  int64_t priority = 0;  // higher goes first

  OnInvalid on_invalid = OnInvalid::kMask;
  int64_t replacements = 0;  // fresh attempts a sample; 0 unless kReplace

  bool routed_experts = false;
  bool advantage = false;
  int32_t kept_ids = 0;  // most ids a token that are recorded of what it was drawn from; 0 = none
  WeightsPolicy weights;
  Retention retention = Retention::kDaemon;

  std::vector<Tool> tools;
  std::vector<Task> tasks;  // those that are used
  std::string digest;       // SHA-256 (raw) over job file, task set and tool definitions

  size_t trajectories() const { return tasks.size() * group_size; }
};

// Reads a job. `name` stands for the job file in errors; `job_id` overrides the id in the file when
// not empty.
absl::StatusOr<std::unique_ptr<JobSpec>> LoadJob(std::string_view toml,
                                                 const std::string& directory,
                                                 const std::string& name,
                                                 const std::string& job_id);

}  // namespace reprise::rollout
