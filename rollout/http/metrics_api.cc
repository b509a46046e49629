#include "rollout/http/metrics_api.h"

#include <map>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "absl/strings/ascii.h"
#include "base/metrics.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "rollout/http/http_metrics.h"

namespace reprise::rollout::http {
namespace {

using base::MetricsText;
using Schedulers = std::vector<std::pair<std::string, Scheduler*>>;

constexpr const char* kEndingNames[] = {"stop", "length", "abort", "error"};

std::string ModelLabel(const std::string& directory) {
  return MetricsText::Label("model_name", directory.substr(directory.rfind('/') + 1));
}

template <typename Value>
void PerModel(const Schedulers& schedulers, std::string_view name, std::string_view type,
              std::string_view help, Value value, MetricsText* text) {
  text->Family(name, type, help);
  for (const auto& [directory, scheduler] : schedulers)
    text->Sample(static_cast<double>(value(*scheduler)), ModelLabel(directory));
}

void AddEngine(const Schedulers& schedulers, MetricsText* text) {
  using S = const Scheduler&;
  PerModel(
      schedulers, "reprise_num_requests_running", "gauge", "Answers that are being decoded.",
      [](S s) { return s.guests_running(); }, text);
  PerModel(
      schedulers, "reprise_num_requests_waiting", "gauge", "Answers that wait for their turn.",
      [](S s) { return s.guests_waiting(); }, text);
  PerModel(
      schedulers, "reprise_num_sequences_running", "gauge",
      "Trajectories of jobs and answers in the last step.",
      [](S s) { return s.metrics().batch.load(); }, text);
  PerModel(
      schedulers, "reprise_engine_steps_total", "counter", "Steps of the engine.",
      [](S s) { return s.metrics().steps.value(); }, text);
  PerModel(
      schedulers, "reprise_prompt_tokens_total", "counter", "Tokens fed that were not sampled.",
      [](S s) { return s.metrics().fed.value(); }, text);
  PerModel(
      schedulers, "reprise_generation_tokens_total", "counter", "Tokens sampled.",
      [](S s) { return s.metrics().sampled.value(); }, text);
  PerModel(
      schedulers, "reprise_prefix_cache_hits_total", "counter",
      "Tokens that came out of the prefix cache.", [](S s) { return s.metrics().reused.load(); },
      text);
  PerModel(
      schedulers, "reprise_kv_cache_bytes", "gauge", "Bytes of key-value states.",
      [](S s) { return s.metrics().kv_bytes.load(); }, text);
  PerModel(
      schedulers, "reprise_prefix_cache_bytes", "gauge", "Bytes that the prefix cache holds.",
      [](S s) { return s.metrics().prefix_cache_bytes.load(); }, text);
  PerModel(
      schedulers, "reprise_num_preemptions_total", "counter",
      "KV states that went to disk to make room.",
      [](S s) { return s.metrics().preemptions.value(); }, text);
  PerModel(
      schedulers, "reprise_prefix_disk_bytes", "gauge", "Bytes of the prefix cache on disk.",
      [](S s) { return s.metrics().prefix_disk_bytes.load(); }, text);
  PerModel(
      schedulers, "reprise_journal_commits_total", "counter", "Durable batches of the token log.",
      [](S s) { return s.metrics().commits.value(); }, text);
  PerModel(
      schedulers, "reprise_journal_entries_total", "counter", "Entries in those batches.",
      [](S s) { return s.metrics().entries.value(); }, text);
  PerModel(
      schedulers, "reprise_tool_calls_replayed_total", "counter",
      "Calls that sandboxd answered from its journal.",
      [](S s) { return s.metrics().replayed_calls.value(); }, text);
  text->Family("reprise_engine_step_seconds", "histogram", "Time of a step.");
  for (const auto& [directory, scheduler] : schedulers)
    text->Sample(scheduler->metrics().step_seconds, ModelLabel(directory));
  text->Family("reprise_journal_commit_seconds", "histogram", "Time until a batch is durable.");
  for (const auto& [directory, scheduler] : schedulers)
    text->Sample(scheduler->metrics().commit_seconds, ModelLabel(directory));
  text->Family("reprise_judgements_total", "counter", "Answers of HTTP judges.");
  for (const auto& [directory, scheduler] : schedulers) {
    for (size_t i = 0; i < 2; ++i) {
      text->Sample(static_cast<double>(scheduler->metrics().judgements[i].value()),
                   fmt::format("{},{}", ModelLabel(directory),
                               MetricsText::Label("result", i == 0 ? "none" : "value")));
    }
  }
  text->Family("reprise_tool_calls_total", "counter", "Tool calls by how they ended.");
  for (const auto& [directory, scheduler] : schedulers) {
    for (size_t i = 0; i < scheduler->metrics().calls.size(); ++i) {
      const uint64_t count = scheduler->metrics().calls[i].value();
      const auto outcome = static_cast<sandbox::Outcome>(i);
      if (count == 0 || !sandbox::Outcome_IsValid(static_cast<int>(i))) continue;
      const std::string name = sandbox::Outcome_Name(outcome).substr(sizeof("OUTCOME_") - 1);
      text->Sample(static_cast<double>(count),
                   fmt::format("{},{}", ModelLabel(directory),
                               MetricsText::Label("outcome", absl::AsciiStrToLower(name))));
    }
  }
}

void AddRequests(const HttpMetrics& http, MetricsText* text) {
  auto counter = [&](const char* name, const char* help, const base::Counter& value) {
    text->Family(name, "counter", help);
    text->Sample(static_cast<double>(value.value()));
  };
  text->Family("reprise_request_success_total", "counter", "Answers over HTTP by how they ended.");
  for (int i = 0; i < HttpMetrics::kEndings; ++i) {
    text->Sample(static_cast<double>(http.endings[static_cast<size_t>(i)].value()),
                 MetricsText::Label("finished_reason", kEndingNames[i]));
  }
  counter("reprise_requests_replayed_total", "Requests answered from the record.", http.replayed);
  counter("reprise_request_prompt_tokens_total", "Tokens of prompts over HTTP.",
          http.prompt_tokens);
  counter("reprise_request_generation_tokens_total", "Tokens of answers over HTTP.",
          http.generation_tokens);
  text->Family("reprise_time_to_first_token_seconds", "histogram",
               "From a request to its first token.");
  text->Sample(http.first_token);
  text->Family("reprise_inter_token_latency_seconds", "histogram",
               "Between two tokens of an answer.");
  text->Sample(http.inter_token);
  text->Family("reprise_e2e_request_latency_seconds", "histogram",
               "From a request to its last token.");
  text->Sample(http.whole);
}

absl::Status AddJobs(JobTable* jobs, MetricsText* text) {
  auto runs = jobs->List();
  if (!runs.ok()) return runs.status();
  std::map<std::string, uint64_t> states;
  uint64_t trajectories = 0, sealed = 0, failed = 0, tokens = 0;
  uint64_t replaced = 0, dropped = 0;
  for (const auto& run : *runs) {
    const wire::Job job = run->ToProto();
    ++states[job.state()];
    trajectories += job.trajectories();
    sealed += job.sealed();
    failed += job.failed();
    replaced += job.replaced();
    dropped += job.dropped_groups();
    tokens += job.sampled_tokens();
  }
  text->Family("reprise_jobs", "gauge", "Jobs in the journal by state.");
  for (const auto& [state, count] : states)
    text->Sample(static_cast<double>(count), MetricsText::Label("state", state));
  auto gauge = [&](const char* name, const char* help, uint64_t value) {
    text->Family(name, "gauge", help);
    text->Sample(static_cast<double>(value));
  };
  gauge("reprise_trajectories", "Trajectories of all jobs.", trajectories);
  gauge("reprise_trajectories_sealed", "Of them, finished.", sealed);
  gauge("reprise_trajectories_failed", "Of those, without a valid result.", failed);
  gauge("reprise_samples_replaced", "Attempts that a fresh one stands for.", replaced);
  gauge("reprise_groups_dropped", "Groups that are delivered to nobody.", dropped);
  gauge("reprise_journal_sampled_tokens", "Sampled tokens in the journal.", tokens);
  return absl::OkStatus();
}

}  // namespace

void AddMetricsRoutes(const Surface& surface, JobTable* jobs, web::Router* router) {
  router->Add(PoolRoute(surface, "GET", "/metrics",
                        [surface, jobs](const web::RequestPtr&, const web::Respond& respond) {
                          MetricsText text;
                          AddEngine(jobs->Schedulers(), &text);
                          AddRequests(*surface.metrics, &text);
                          if (absl::Status status = AddJobs(jobs, &text); !status.ok())
                            return respond(web::ErrorResponse(status));
                          web::Response response;
                          response.content_type = MetricsText::kContentType;
                          response.body = std::move(text).Finish();
                          respond(std::move(response));
                        }));
}

}  // namespace reprise::rollout::http
