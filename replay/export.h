// A sealed trajectory as one line of rollout.v1 JSON, the record that trainers take. The same log
// content gives the same bytes, whatever crashed in between; only `resume`, `timing` and
// `cached_tokens`, the last fields, tell of the run itself.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "replay/trajectory_state.h"

namespace reprise::replay {

// What the record says that is not in the trajectory's log.
struct ExportContext {
  std::string run_id;        // job id
  uint32_t group_size = 0;   // samples a group
  std::string task_hash;     // SHA-256 of the task line, hexadecimal
  std::string dataset;       // name of the task set
  uint64_t row = 0;          // line of the task in it, from 0
  float temperature = 1.0f;  // as applied
  float top_p = 1.0f;        // as applied
  int32_t top_k = 0;         // as applied; 0 = all
  float min_p = 0;           // as applied
  bool with_advantage = false;
  std::optional<float> advantage;  // of its reward in its group
  // {model, tokenizer, template, build, kv_dtype, batch_invariant}: what made the tokens.
  std::map<std::string, std::string> engine;
  std::string messages_json;  // JSON array, the conversation as text; "" = null
  std::string response_text;  // decoded response
  // Shape of one token's routes when they were recorded.
  uint32_t route_layers = 0, routes_per_token = 0;
  bool routes_are_u16 = false;
  // Of a trajectory with several records: which one, of how many, and the id that they share ("" =
  // the trajectory's own).
  uint32_t branch = 0, n_branches = 1;
  std::string rollout_id;
  uint32_t attempt = 0;         // at its sample, from 0
  bool without_timing = false;  // leave out `resume`, `timing` and `cached_tokens`
};

// FAILED_PRECONDITION when the trajectory is not sealed.
absl::StatusOr<std::string> ExportRecordJson(const TrajectoryState& state,
                                             const ExportContext& context);

// `text` as a JSON string with its quotes; bytes that are not UTF-8 become U+FFFD.
std::string JsonString(const std::string& text);

}  // namespace reprise::replay
