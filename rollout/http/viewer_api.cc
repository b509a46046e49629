#include "rollout/http/viewer_api.h"

#include <cmath>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/status_macros.h"
#include "rollout/http/page.h"
#include "rollout/text.h"

namespace reprise::rollout::http {
namespace {

using Json = nlohmann::ordered_json;
using replay::Segment;
using replay::TrajectoryState;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json Jobs(JobTable* jobs, absl::Status* status) {
  Json list = Json::array();
  auto runs = jobs->List();
  if (!runs.ok()) {
    *status = runs.status();
    return list;
  }
  for (const auto& run : *runs) {
    const wire::Job job = run->ToProto();
    list.push_back({{"id", job.job_id()},
                    {"state", job.state()},
                    {"message", job.message()},
                    {"external", run->external()},
                    {"group_size", run->group_size()},
                    {"trajectories", job.trajectories()},
                    {"sealed", job.sealed()},
                    {"failed", job.failed()},
                    {"sampled_tokens", job.sampled_tokens()},
                    {"tool_calls", job.tool_calls()},
                    {"mean_reward", job.rewarded() > 0 ? Json(job.mean_reward()) : Json()}});
  }
  return list;
}

// Every trajectory that has begun, with its records.
Json Trajectories(const JobRun& run) {
  Json list = Json::array();
  const size_t size = run.size();
  for (size_t i = 0; i < size; ++i) {
    const Summary summary = run.summary(i);
    if (summary.tokens == 0) continue;
    list.push_back({{"id", run.trajectory_id(i)},
                    {"records", run.record_ids(i)},
                    {"group", i / run.group_size()},
                    {"task", summary.task_id},
                    {"status", summary.status},
                    {"stop_reason", summary.stop_reason},
                    {"tokens", summary.tokens},
                    {"sampled", summary.sampled},
                    {"calls", summary.calls},
                    {"reward", summary.has_reward ? Json(summary.reward) : Json()}});
  }
  return list;
}

const char* RoleName(Segment::Role role) {
  switch (role) {
    case Segment::Role::kPrompt:
      return "prompt";
    case Segment::Role::kSampled:
      return "sampled";
    case Segment::Role::kTool:
      return "tool";
  }
  return "";
}

// A sampled segment token by token; any other as one text.
Json SegmentJson(const TrajectoryState& state, const Segment& segment,
                 const engine::Tokenizer& tokenizer) {
  Json out = {{"role", RoleName(segment.role)},
              {"begin", segment.begin},
              {"end", segment.end},
              {"turn", segment.turn},
              {"calls", segment.call_ids}};
  const auto ids =
      absl::MakeConstSpan(state.tokens).subspan(segment.begin, segment.end - segment.begin);
  if (segment.role != Segment::Role::kSampled) {
    out["text"] = ToUtf8(tokenizer.Decode(ids));
    return out;
  }
  Json texts = Json::array(), logprobs = Json::array();
  engine::StreamDecoder decoder(&tokenizer);
  for (size_t i = 0; i < ids.size(); ++i) {
    texts.push_back(ToUtf8(decoder.Push(ids[i])));
    const float logprob = state.logprobs[segment.begin + i];
    logprobs.push_back(std::isfinite(logprob) ? Json(logprob) : Json());
  }
  out["ids"] = std::vector<int32_t>(ids.begin(), ids.end());
  out["texts"] = std::move(texts);
  out["logprobs"] = std::move(logprobs);
  return out;
}

Json CallJson(const replay::CallState& call) {
  Json out = {{"id", call.issued.call_id()},
              {"tool", call.issued.tool()},
              {"arguments", call.issued.arguments_json()},
              {"end", call.issued.span_end()},
              {"outcome", nullptr}};
  if (!call.done.has_value()) return out;
  const std::string name = sandbox::Outcome_Name(call.done->outcome());
  out["outcome"] = name == "OUTCOME_UNSPECIFIED" ? "NOT_RUN" : name.substr(sizeof("OUTCOME_") - 1);
  out["exit_code"] = call.done->exit_code();
  out["error"] = call.done->error();
  out["replayed"] = call.done->replayed();
  out["ms"] = static_cast<double>(call.done->duration_us()) / 1000.0;
  return out;
}

absl::StatusOr<Json> Record(JobTable* jobs, replay::TrajectoryLog* log, const std::string& job,
                            const std::string& id) {
  ASSIGN_OR_RETURN(const std::shared_ptr<JobRun> run, jobs->Find(job));
  if (run->tokenizer() == nullptr) return run->why_no_spec();
  ASSIGN_OR_RETURN(const std::vector<journal::TrajectoryEntry> entries, log->Read(id));
  ASSIGN_OR_RETURN(const TrajectoryState state, replay::Fold(entries));
  Json out = {{"id", id},
              {"task", state.start.task_id()},
              {"seed", std::to_string(state.start.seed())},  // a browser's numbers hold 53 bits
              {"tokens", state.tokens.size()},
              {"reward", nullptr},
              {"status", "running"},
              {"resumed", state.resumed.size()}};
  if (state.reward.has_value() && state.reward->has_value()) out["reward"] = state.reward->value();
  if (state.sealed.has_value()) {
    out["status"] = state.sealed->status();
    out["stop_reason"] = state.sealed->stop_reason();
    out["failure"] = state.sealed->failure();
  }
  out["versions"] = Json::array();
  for (const replay::VersionSpan& span : state.version_spans)
    out["versions"].push_back({span.version, span.begin, span.end});
  out["segments"] = Json::array();
  for (const Segment& segment : state.segments)
    out["segments"].push_back(SegmentJson(state, segment, *run->tokenizer()));
  out["calls"] = Json::array();
  for (const replay::CallState& call : state.calls) out["calls"].push_back(CallJson(call));
  return out;
}

}  // namespace

void AddViewerRoutes(const Surface& surface, JobTable* jobs, replay::TrajectoryLog* log,
                     web::Router* router) {
  // The page holds nothing; it asks for the token before it asks for anything else.
  web::Route page;
  page.method = "GET";
  page.pattern = "/";
  page.handler = [](const web::RequestPtr&, const web::Respond& respond) {
    web::Response response;
    response.content_type = "text/html; charset=utf-8";
    response.headers = {{"Content-Security-Policy",
                         "default-src 'none'; style-src 'unsafe-inline'; script-src "
                         "'unsafe-inline'; connect-src 'self'"},
                        {"X-Content-Type-Options", "nosniff"}};
    response.body = std::string(kPage, kPageBytes);
    respond(std::move(response));
  };
  router->Add(std::move(page));
  router->Add(PoolRoute(surface, "GET", "/v1/jobs",
                        [jobs](const web::RequestPtr&, const web::Respond& respond) {
                          absl::Status status;
                          const Json list = Jobs(jobs, &status);
                          if (!status.ok()) return respond(web::ErrorResponse(status));
                          respond(web::JsonResponse(200, Dump(list)));
                        }));
  router->Add(PoolRoute(surface, "GET", "/v1/jobs/{}/trajectories",
                        [jobs](const web::RequestPtr& request, const web::Respond& respond) {
                          auto run = jobs->Find(request->params[0]);
                          if (!run.ok()) return respond(web::ErrorResponse(run.status()));
                          respond(web::JsonResponse(200, Dump(Trajectories(**run))));
                        }));
  router->Add(PoolRoute(surface, "GET", "/v1/jobs/{}/{}/{}",
                        [jobs, log](const web::RequestPtr& request, const web::Respond& respond) {
                          const auto& part = request->params;
                          auto record = Record(jobs, log, part[0],
                                               fmt::format("{}/{}/{}", part[0], part[1], part[2]));
                          if (!record.ok()) return respond(web::ErrorResponse(record.status()));
                          respond(web::JsonResponse(200, Dump(*record)));
                        }));
}

}  // namespace reprise::rollout::http
