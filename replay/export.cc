#include "replay/export.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "replay/sha256.h"

namespace reprise::replay {
namespace {

// Builds one JSON object member by member, in the order of the calls.
class ObjectWriter {
 public:
  // `json` is JSON text.
  ObjectWriter& Raw(std::string_view key, std::string_view json) {
    fmt::format_to(std::back_inserter(out_), "{}\"{}\":{}", out_.size() == 1 ? "" : ",", key, json);
    return *this;
  }
  ObjectWriter& Text(std::string_view key, const std::string& value) {
    return Raw(key, JsonString(value));
  }
  template <typename T>
  ObjectWriter& Number(std::string_view key, T value) {
    return Raw(key, fmt::format("{}", value));
  }
  ObjectWriter& Bool(std::string_view key, bool value) {
    return Raw(key, value ? "true" : "false");
  }
  std::string Finish() { return out_ + "}"; }

 private:
  std::string out_ = "{";
};

// Shortest text that reads back as the same float32. JSON has no infinities.
std::string FloatText(float value) {
  return std::isfinite(value) ? fmt::format("{}", value) : "null";
}

template <typename Range, typename Print>
std::string Array(const Range& range, Print print) {
  std::string out = "[";
  for (const auto& item : range) {
    if (out.size() > 1) out.push_back(',');
    out += print(item);
  }
  return out + "]";
}

std::string Integers(const int32_t* begin, const int32_t* end) {
  std::string out = "[";
  for (const int32_t* id = begin; id != end; ++id) {
    if (id != begin) out.push_back(',');
    fmt::format_to(std::back_inserter(out), "{}", *id);
  }
  return out + "]";
}

std::string Segments(const TrajectoryState& state) {
  return Array(state.segments, [](const Segment& segment) {
    const char* role = segment.role == Segment::Role::kPrompt    ? "prompt"
                       : segment.role == Segment::Role::kSampled ? "sampled"
                                                                 : "tool";
    ObjectWriter writer;
    writer.Text("role", role)
        .Number("start", segment.begin)
        .Number("end", segment.end)
        .Number("turn", segment.turn);
    writer.Raw("call_ids", Array(segment.call_ids, JsonString));
    return writer.Finish();
  });
}

std::string OutcomeName(const journal::CallDone& done) {
  if (done.outcome() == ::reprise::sandbox::v1::OUTCOME_UNSPECIFIED) return "NOT_RUN";
  return ::reprise::sandbox::v1::Outcome_Name(done.outcome()).substr(sizeof("OUTCOME_") - 1);
}

std::string ToolCalls(const TrajectoryState& state) {
  return Array(state.calls, [](const CallState& call) {
    ObjectWriter writer;
    writer.Text("call_id", call.issued.call_id()).Text("tool", call.issued.tool());
    writer.Text("arguments", call.issued.arguments_json());
    writer.Raw("span", fmt::format("[{},{}]", call.issued.span_begin(), call.issued.span_end()));
    if (call.done.has_value()) {
      writer.Text("outcome", OutcomeName(*call.done)).Number("exit_code", call.done->exit_code());
      writer.Text("result", call.done->result_text());
      writer.Raw("error", call.done->error().empty() ? "null" : JsonString(call.done->error()));
      writer.Bool("truncated", call.done->truncated());
    } else {
      writer.Raw("outcome", "null");
    }
    return writer.Finish();
  });
}

std::string Failure(const journal::Sealed& sealed) {
  if (sealed.failure_kind().empty()) return "null";
  return ObjectWriter()
      .Text("kind", sealed.failure_kind())
      .Text("reason", sealed.failure())
      .Bool("retriable", IsRetriable(sealed))
      .Finish();
}

std::string FinishReason(const journal::Sealed& sealed) {
  return sealed.stop_reason().empty() ? sealed.status() : sealed.stop_reason();
}

void AddTokens(const TrajectoryState& state, ObjectWriter* writer) {
  const int32_t* begin = state.tokens.data();
  const int32_t* middle = begin + state.prompt_len();
  const int32_t* end = begin + state.tokens.size();
  writer->Raw("token_ids", Integers(begin, end)).Number("prompt_len", state.prompt_len());
  writer->Raw("prompt_ids", Integers(begin, middle)).Raw("response_ids", Integers(middle, end));
  writer->Raw("loss_mask", Array(state.loss_mask,
                                 [](uint8_t bit) { return std::string(bit != 0 ? "1" : "0"); }));
  writer->Raw("logprobs", Array(state.logprobs, FloatText)).Text("logprobs_mode", "processed");
  writer->Raw("version_spans", Array(state.version_spans, [](const VersionSpan& span) {
                return fmt::format("[{},{},{}]", span.version, span.begin, span.end);
              }));
  std::vector<int64_t> versions(state.tokens.size(), -1);
  for (const VersionSpan& span : state.version_spans) {
    for (uint64_t i = span.begin; i < span.end; ++i)
      versions[i] = static_cast<int64_t>(span.version);
  }
  writer->Raw("weight_versions",
              Array(versions, [](int64_t version) { return fmt::format("{}", version); }));
  writer->Raw("weight_switches", Array(state.switches, [](const WeightSwitch& at) {
                return fmt::format("{{\"at_token\":{},\"version\":{},\"kv_kept\":{}}}", at.at_token,
                                   at.version, at.kept);
              }));
  writer->Raw("segments", Segments(state));
}

// One row a token but the last, as trainers take them; rows from `recorded` on are filler (a
// trajectory that ended before its last tokens were fed).
void AddRoutes(const TrajectoryState& state, const ExportContext& context, ObjectWriter* writer) {
  if (state.routed_experts.empty() || context.route_layers == 0) return;
  const size_t per_token = static_cast<size_t>(context.route_layers) * context.routes_per_token *
                           (context.routes_are_u16 ? 2 : 1);
  const size_t rows = state.tokens.size() - 1;
  std::string data = state.routed_experts;
  data.resize(rows * per_token, '\xff');
  ObjectWriter routes;
  routes.Text("dtype", context.routes_are_u16 ? "uint16" : "uint8");
  routes.Raw("shape",
             fmt::format("[{},{},{}]", rows, context.route_layers, context.routes_per_token));
  routes.Number("recorded", state.routed_experts.size() / per_token);
  routes.Text("data_base64", absl::Base64Escape(data));
  writer->Raw("routed_experts", routes.Finish());
}

// Ragged, by token: the ids of token i are kept_ids[kept_offsets[i], kept_offsets[i + 1]).
void AddKept(const TrajectoryState& state, ObjectWriter* writer) {
  if (state.kept_counts.empty()) return;
  std::vector<uint64_t> offsets(state.tokens.size() + 1, 0);
  for (size_t i = 0; i < state.tokens.size(); ++i)
    offsets[i + 1] = offsets[i] + (i < state.kept_counts.size() ? state.kept_counts[i] : 0);
  writer->Raw("kept_offsets",
              Array(offsets, [](uint64_t offset) { return fmt::format("{}", offset); }));
  const int32_t* ids = state.kept_ids.data();
  writer->Raw("kept_ids", Integers(ids, ids + state.kept_ids.size()));
}

// Of every token; 0 where nothing was forbidden.
void AddAllowed(const TrajectoryState& state, ObjectWriter* writer) {
  if (state.allowed_counts.empty()) return;
  std::vector<uint32_t> counts = state.allowed_counts;
  std::vector<float> logprobs = state.allowed_logprobs;
  counts.resize(state.tokens.size(), 0);
  logprobs.resize(state.tokens.size(), 0);
  writer->Raw("allowed_counts", Array(counts, [](uint32_t n) { return fmt::format("{}", n); }));
  writer->Raw("allowed_logprobs", Array(logprobs, FloatText));
}

std::string Reward(const TrajectoryState& state) {
  return state.reward.has_value() && state.reward->has_value() ? FloatText(state.reward->value())
                                                               : "null";
}

std::string RewardComponents(const TrajectoryState& state) {
  ObjectWriter writer;
  if (state.reward.has_value()) {
    std::map<std::string, float> sorted(state.reward->components().begin(),
                                        state.reward->components().end());
    for (const auto& [name, value] : sorted) {
      std::string quoted = JsonString(name);
      writer.Raw(std::string_view(quoted).substr(1, quoted.size() - 2), FloatText(value));
    }
  }
  return writer.Finish();
}

std::string RewardMetadata(const TrajectoryState& state) {
  const bool some = state.reward.has_value() && !state.reward->metadata_json().empty();
  return some ? state.reward->metadata_json() : "null";
}

double Millis(int64_t micros) { return static_cast<double>(micros) / 1000.0; }

void AddTiming(const TrajectoryState& state, ObjectWriter* writer) {
  writer->Raw("resume", Array(state.resumed, [](const journal::Resumed& resumed) {
                return ObjectWriter()
                    .Number("at_token", resumed.at_token())
                    .Text("cause", resumed.cause())
                    .Number("prefill_tokens", resumed.prefill_tokens())
                    .Number("gap_ms", Millis(resumed.gap_us()))
                    .Finish();
              }));
  const journal::Timing& timing = state.sealed->timing();
  ObjectWriter times;
  times.Number("queue_ms", Millis(timing.queue_us()))
      .Number("prefill_ms", Millis(timing.prefill_us()));
  times.Number("decode_ms", Millis(timing.decode_us())).Number("tool_ms", Millis(timing.tool_us()));
  times.Number("grade_ms", Millis(timing.grade_us())).Number("total_ms", Millis(timing.total_us()));
  times.Raw("calls", Array(state.calls, [](const CallState& call) {
              ObjectWriter one;
              one.Text("call_id", call.issued.call_id());
              if (call.done.has_value()) {
                one.Number("ms", Millis(call.done->duration_us()))
                    .Bool("replayed", call.done->replayed());
              }
              return one.Finish();
            }));
  writer->Raw("timing", times.Finish());
  uint64_t cached = timing.cached_tokens();
  for (const Exchange& exchange : state.exchanges)
    cached += exchange.done ? exchange.done->cached_tokens() : 0;
  writer->Number("cached_tokens", cached);
}

}  // namespace

std::string JsonString(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

absl::StatusOr<std::string> ExportRecordJson(const TrajectoryState& state,
                                             const ExportContext& context) {
  if (!state.sealed.has_value()) {
    return absl::FailedPreconditionError(fmt::format(
        "trajectory \"{}\" is not sealed yet; let its job end first", state.start.trajectory_id()));
  }
  const journal::TrajectoryStart& start = state.start;
  const std::string group_id = fmt::format("{}/{:06}", start.job_id(), start.group());
  ObjectWriter writer;
  writer.Text("schema", "rollout.v1").Text("run_id", context.run_id);
  writer.Text("group_id", group_id).Number("group_ordinal", start.group());
  writer.Number("group_size", context.group_size).Number("sample_idx", start.sample());
  writer
      .Text("rollout_id",
            context.rollout_id.empty() ? start.trajectory_id() : context.rollout_id)
      .Number("branch", context.branch)
      .Number("n_branches", context.n_branches)
      .Number("attempt", context.attempt);
  if (start.has_fork()) {
    writer.Raw("fork", ObjectWriter()
                           .Text("parent", start.fork().parent_id())
                           .Number("at_step", start.fork().at_step())
                           .Number("shared_tokens", start.fork().shared_tokens())
                           .Finish());
  }
  writer.Raw("task", ObjectWriter()
                         .Text("key", start.task_id())
                         .Text("hash", context.task_hash)
                         .Text("dataset", context.dataset)
                         .Number("row", context.row)
                         .Finish());
  AddTokens(state, &writer);
  AddRoutes(state, context, &writer);
  AddKept(state, &writer);
  AddAllowed(state, &writer);
  writer.Raw("temperature", FloatText(context.temperature)).Raw("top_p", FloatText(context.top_p));
  writer.Number("top_k", context.top_k).Raw("min_p", FloatText(context.min_p));
  writer.Number("seed", start.seed());
  writer.Raw("reward", Reward(state)).Raw("reward_components", RewardComponents(state));
  writer.Raw("reward_metadata", RewardMetadata(state));
  if (context.with_advantage) {
    writer.Raw("advantage", context.advantage ? FloatText(*context.advantage) : "null");
  }
  writer.Text("status", state.sealed->status()).Text("stop_reason", state.sealed->stop_reason());
  writer.Text("finish_reason", FinishReason(*state.sealed)).Bool("valid", IsValid(state));
  writer.Raw("failure", Failure(*state.sealed));
  ObjectWriter engine;
  for (const auto& [name, value] : context.engine) engine.Text(name, value);
  writer.Raw("engine", engine.Finish()).Raw("tool_calls", ToolCalls(state));
  writer.Raw("messages", context.messages_json.empty() ? "null" : context.messages_json);
  writer.Text("response_text", context.response_text).Text("digest", Hex(TrajectoryDigest(state)));
  if (!context.without_timing) AddTiming(state, &writer);
  return writer.Finish();
}

}  // namespace reprise::replay
