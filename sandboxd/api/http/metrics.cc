#include "sandboxd/api/http/metrics.h"

#include <string>
#include <utility>

#include <fmt/format.h>

#include "absl/strings/ascii.h"
#include "base/metrics.h"
#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::sandboxd::http {
namespace {

using base::MetricsText;

// A name of an enum without its prefix, as a label: "TIER_VM" -> "vm".
std::string LabelOf(std::string_view label, const std::string& name, std::string_view prefix) {
  return MetricsText::Label(label, absl::AsciiStrToLower(name.substr(prefix.size())));
}
std::string TierLabel(size_t tier) {
  return LabelOf("tier", sandbox::Tier_Name(static_cast<sandbox::Tier>(tier)), "TIER_");
}

void AddSandboxes(SandboxManager* sandboxes, MetricsText* text) {
  text->Family("reprise_sandboxes", "gauge", "Sandboxes that are not stopped.");
  for (const auto& [of, count] : sandboxes->Count()) {
    text->Sample(
        static_cast<double>(count),
        fmt::format("{},{}", TierLabel(of.first),
                    LabelOf("state", sandbox::SandboxState_Name(of.second), "SANDBOX_STATE_")));
  }
  text->Family("reprise_sandbox_create_seconds", "histogram", "Time to make a sandbox.");
  for (const auto& [tier, substrate] : sandboxes->tiers())
    text->Sample(sandboxes->metrics().tiers[static_cast<size_t>(tier)].create_seconds,
                 TierLabel(tier));
  text->Family("reprise_sandbox_create_failures_total", "counter",
               "Sandboxes that could not be made.");
  for (const auto& [tier, substrate] : sandboxes->tiers())
    text->Sample(
        static_cast<double>(sandboxes->metrics().tiers[static_cast<size_t>(tier)].failed.value()),
        TierLabel(tier));
}

void AddCalls(CallManager* calls, MetricsText* text) {
  const CallMetrics& metrics = calls->metrics();
  text->Family("reprise_calls_unfinished", "gauge", "Calls that wait or run.");
  text->Sample(static_cast<double>(calls->unfinished()));
  text->Family("reprise_calls_total", "counter", "Calls by how they ended.");
  for (size_t i = 0; i < metrics.ended.size(); ++i) {
    if (!sandbox::Outcome_IsValid(static_cast<int>(i)) || metrics.ended[i].value() == 0) continue;
    text->Sample(
        static_cast<double>(metrics.ended[i].value()),
        LabelOf("outcome", sandbox::Outcome_Name(static_cast<sandbox::Outcome>(i)), "OUTCOME_"));
  }
  auto counter = [&](const char* name, const char* help, const base::Counter& value) {
    text->Family(name, "counter", help);
    text->Sample(static_cast<double>(value.value()));
  };
  counter("reprise_calls_replayed_total", "Requests answered from the journal.", metrics.replayed);
  counter("reprise_calls_joined_total", "Requests that found their call running.", metrics.joined);
  counter("reprise_calls_refused_total", "Requests of which nothing was begun.", metrics.refused);
  auto histogram = [&](const char* name, const char* help, const base::Histogram& value) {
    text->Family(name, "histogram", help);
    text->Sample(value);
  };
  histogram("reprise_call_queue_seconds", "From a request until its call could begin.",
            metrics.queue_seconds);
  histogram("reprise_call_run_seconds", "From a durable INTENT to a durable RESULT.",
            metrics.run_seconds);
  histogram("reprise_journal_commit_seconds", "Time until an INTENT is durable.",
            metrics.intent_seconds);
}

void AddJournal(const storage::Store& journal, MetricsText* text) {
  const storage::Store::Stats stats = journal.stats();
  auto counter = [&](const char* name, const char* help, uint64_t value) {
    text->Family(name, "counter", help);
    text->Sample(static_cast<double>(value));
  };
  counter("reprise_journal_commits_total", "Batches that were asked for.", stats.batches);
  counter("reprise_journal_groups_total", "Writes that they became.", stats.groups);
  counter("reprise_journal_syncs_total", "Of them, synced to the disk.", stats.syncs);
  counter("reprise_journal_bytes_total", "Bytes of keys and values.", stats.bytes);
  text->Family("reprise_journal_healthy", "gauge", "0 once a write has failed.");
  text->Sample(journal.health().ok() ? 1 : 0);
}

}  // namespace

void AddMetricsRoute(const Surface& surface, const storage::Store* journal, Router* router) {
  Route route;
  route.method = "GET";
  route.pattern = "/metrics";
  route.guard = [access = surface.access](const Request& request) -> std::optional<Response> {
    if (access->IsOwner(request)) return std::nullopt;
    return ErrorResponse(401, "show the daemon's token");
  };
  route.handler = OnVerbThread(
      surface, [](const absl::Status& status) { return ErrorResponse(status); },
      [surface, journal](const Request&) {
        MetricsText text;
        AddSandboxes(surface.sandboxes, &text);
        AddCalls(surface.calls, &text);
        AddJournal(*journal, &text);
        Response response;
        response.content_type = MetricsText::kContentType;
        response.body = std::move(text).Finish();
        return response;
      });
  router->Add(std::move(route));
}

}  // namespace reprise::sandboxd::http
