// E2B's control plane: sandboxes made, found, listed, timed out, paused, removed.
#include <algorithm>
#include <thread>
#include <tuple>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "http/target.h"
#include "replay/sha256.h"
#include "sandboxd/api/http/e2b_box.h"
#include "sandboxd/api/http/e2b_create.h"
#include "sandboxd/api/http/e2b_templates.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd::http {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMebibyte = 1 << 20;
constexpr int64_t kTimeoutDefault = 300, kTimeoutDefaultOld = 15;  // seconds, by create path
constexpr size_t kPageDefault = 100, kPageMax = 1000;

Json Metadata(const sandbox::Sandbox& box) {
  Json metadata = Json::object();
  for (const auto& [key, value] : box.spec().labels()) {
    if (key != kTemplateLabel) metadata[key] = value;
  }
  return metadata;
}

Json Network(const sandbox::NetworkPolicy& policy) {
  Json allow = Json::array(), deny = Json::array();
  for (const std::string& rule : policy.allow()) allow.push_back(rule);
  for (const std::string& rule : policy.deny()) deny.push_back(rule);
  if (!policy.open()) deny = Json::array({"0.0.0.0/0"});
  return {{"allowOut", allow}, {"denyOut", deny}};
}

class Control {
 public:
  Control(Surface surface, LeaseTable* leases, TemplateStore* templates)
      : surface_(surface), leases_(leases), templates_(templates) {}

  Response Create(const Request& request, int64_t default_timeout_s) {
    absl::StatusOr<CreateOrder> order =
        ParseCreate(request.body, default_timeout_s, surface_.internet);
    if (!order.ok()) return ErrorResponse(order.status());
    TemplateStore::Template built;
    const absl::Status applied = ApplyTemplate(*templates_, &*order, &built);
    if (!applied.ok() && !absl::IsNotFound(applied)) return ErrorResponse(applied);
    sandbox::CreateRequest create;
    create.set_sandbox_id(order->trajectory.empty() ? fmt::format("i{}", base::RandomHex(10))
                                                    : TrajectoryBox(order->trajectory));
    *create.mutable_spec() = order->spec;
    const absl::StatusOr<sandbox::CreateResponse> made = surface_.sandboxes->Create(create);
    if (!made.ok()) return ErrorResponse(made.status());
    LeaseTable::Lease lease;
    lease.set_pause_at_end(order->pause_at_end);
    lease.set_trajectory(order->trajectory);
    if (absl::Status kept = Prolong(leases_, create.sandbox_id(), lease, order->timeout_s);
        !kept.ok()) {
      if (!made->existed()) (void)surface_.calls->Stop(create.sandbox_id());
      return ErrorResponse(kept);
    }
    if (absl::Status started = StartTemplate(surface_, create.sandbox_id(), built); !started.ok()) {
      if (!made->existed()) (void)surface_.calls->Stop(create.sandbox_id());
      return ErrorResponse(started);
    }
    return Answer(201, BoxHandle(surface_, made->sandbox()));
  }

  Response Connect(const Request& request) {
    const absl::StatusOr<int64_t> timeout = ParseTimeout(request.body, kTimeoutDefault);
    if (!timeout.ok()) return ErrorResponse(timeout.status());
    absl::StatusOr<sandbox::Sandbox> box = LiveBox(surface_, request.params[0]);
    if (!box.ok()) return ErrorResponse(box.status());
    const bool paused = IsPaused(*box);
    if (paused) {
      if (absl::Status status = surface_.sandboxes->Resume(box->id()); !status.ok())
        return ErrorResponse(status);
    }
    // Connecting prolongs a lease and never shortens it.
    LeaseTable::Lease lease = leases_->Get(box->id()).value_or(LeaseTable::Lease());
    if (paused || lease.ends_us() < base::WallMicros() + *timeout * kMicrosPerSecond) {
      if (absl::Status kept = Prolong(leases_, box->id(), lease, *timeout); !kept.ok())
        return ErrorResponse(kept);
    }
    return Answer(paused ? 201 : 200, BoxHandle(surface_, *box));
  }

  Response Get(const Request& request) {
    const absl::StatusOr<sandbox::Sandbox> box = LiveBox(surface_, request.params[0]);
    return box.ok() ? Answer(200, Details(*box)) : ErrorResponse(box.status());
  }

  Response List(const Request& request) {
    std::vector<std::pair<std::string, std::string>> metadata;
    if (const std::string* filter = request.query_param("metadata"); filter != nullptr) {
      auto pairs = ::reprise::http::ParseQuery(*filter);
      if (!pairs.ok()) return ErrorResponse(pairs.status());
      metadata = *std::move(pairs);
    }
    bool running = false, paused = false;
    for (const auto& [name, value] : request.query) {
      if (name != "state") continue;
      running = running || value.find("running") != std::string::npos;
      paused = paused || value.find("paused") != std::string::npos;
    }
    size_t limit = kPageDefault;
    if (const std::string* text = request.query_param("limit");
        text != nullptr && (!absl::SimpleAtoi(*text, &limit) || limit < 1 || limit > kPageMax))
      return ErrorResponse(400, fmt::format("limit must be 1 to {}", kPageMax));
    const std::string* image = request.query_param("template");
    absl::StatusOr<sandbox::ListResponse> all = surface_.sandboxes->List();
    if (!all.ok()) return ErrorResponse(all.status());
    std::vector<const sandbox::Sandbox*> boxes;
    size_t running_total = 0;
    for (const sandbox::Sandbox& box : all->sandboxes()) {
      const auto& labels = box.spec().labels();
      if (!IsLive(box) || labels.find(kTemplateLabel) == labels.end()) continue;
      running_total += IsPaused(box) ? 0 : 1;
      if ((running || paused) && !(IsPaused(box) ? paused : running)) continue;
      if (image != nullptr && TemplateOf(box) != *image) continue;
      const bool fits = std::all_of(metadata.begin(), metadata.end(), [&](const auto& pair) {
        const auto found = labels.find(pair.first);
        return found != labels.end() && found->second == pair.second;
      });
      if (fits) boxes.push_back(&box);
    }
    // Newest first; the token of a page is the key of its last entry.
    const auto key = [](const sandbox::Sandbox* box) {
      return std::make_tuple(-box->created_us(), std::string_view(box->id()));
    };
    std::sort(boxes.begin(), boxes.end(),
              [&](const auto* a, const auto* b) { return key(a) < key(b); });
    if (const std::string* token = request.query_param("nextToken");
        token != nullptr && !token->empty()) {
      const size_t colon = token->find(':');
      int64_t created = 0;
      if (colon == std::string::npos || !absl::SimpleAtoi(token->substr(0, colon), &created))
        return ErrorResponse(400, "nextToken is none that a page ended with");
      const std::string_view id = std::string_view(*token).substr(colon + 1);
      std::erase_if(boxes, [&](const auto* box) { return key(box) <= std::tuple(-created, id); });
    }
    Json page = Json::array();
    for (size_t i = 0; i < std::min(limit, boxes.size()); ++i) page.push_back(Details(*boxes[i]));
    Response response = Answer(200, page);
    response.headers.push_back({"X-Total-Running", fmt::format("{}", running_total)});
    if (boxes.size() > limit) {
      const sandbox::Sandbox& last = *boxes[limit - 1];
      response.headers.push_back(
          {"X-Next-Token", fmt::format("{}:{}", last.created_us(), last.id())});
    }
    return response;
  }

  Response Remove(const Request& request) {
    const absl::StatusOr<sandbox::Sandbox> box = LiveBox(surface_, request.params[0]);
    if (!box.ok()) return ErrorResponse(box.status());
    const absl::StatusOr<bool> stopped = surface_.calls->Stop(box->id());
    if (!stopped.ok()) return ErrorResponse(stopped.status());
    if (absl::Status status = leases_->Remove(box->id()); !status.ok())
      return ErrorResponse(status);
    return *stopped ? EmptyAnswer(204)
                    : ErrorResponse(404, fmt::format("sandbox {} does not exist", box->id()));
  }

  Response Timeout(const Request& request) {
    const absl::StatusOr<int64_t> timeout = ParseTimeout(request.body, kTimeoutDefault);
    if (!timeout.ok()) return ErrorResponse(timeout.status());
    const absl::StatusOr<sandbox::Sandbox> box = LiveBox(surface_, request.params[0]);
    if (!box.ok()) return ErrorResponse(box.status());
    const LeaseTable::Lease lease = leases_->Get(box->id()).value_or(LeaseTable::Lease());
    if (absl::Status kept = Prolong(leases_, box->id(), lease, *timeout); !kept.ok())
      return ErrorResponse(kept);
    return EmptyAnswer(204);
  }

  Response SetNetwork(const Request& request) {
    const absl::StatusOr<sandbox::NetworkPolicy> policy =
        ParseNetworkUpdate(request.body, surface_.internet);
    if (!policy.ok()) return ErrorResponse(policy.status());
    const absl::StatusOr<sandbox::Sandbox> box = LiveBox(surface_, request.params[0]);
    if (!box.ok()) return ErrorResponse(box.status());
    sandbox::SetNetworkRequest set;
    set.set_sandbox_id(box->id());
    *set.mutable_network() = *policy;
    const bool unchanged = !box->has_network() && !policy->open() && policy->allow().empty();
    if (unchanged) return EmptyAnswer(204);  // also where the tier has none
    const absl::Status done = surface_.sandboxes->SetNetwork(set);
    return done.ok() ? EmptyAnswer(204) : ErrorResponse(done);
  }

  Response Pause(const Request& request) {
    const absl::StatusOr<sandbox::Sandbox> box = LiveBox(surface_, request.params[0]);
    if (!box.ok()) return ErrorResponse(box.status());
    if (IsPaused(*box))
      return ErrorResponse(409, fmt::format("sandbox {} is paused already", box->id()));
    if (absl::Status status = surface_.sandboxes->Pause(box->id()); !status.ok())
      return ErrorResponse(status);
    LeaseTable::Lease lease = leases_->Get(box->id()).value_or(LeaseTable::Lease());
    lease.set_ends_us(0);  // a paused sandbox waits for ever
    if (absl::Status kept = leases_->Put(box->id(), lease); !kept.ok()) return ErrorResponse(kept);
    return EmptyAnswer(204);
  }

  // One point: averages over the calls so far. Tiers measure calls, not sandboxes.
  Response Metrics(const Request& request) {
    const absl::StatusOr<sandbox::Sandbox> box = LiveBox(surface_, request.params[0]);
    if (!box.ok()) return ErrorResponse(box.status());
    const absl::StatusOr<sandbox::ListCallsResponse> calls = surface_.calls->ListCalls(box->id());
    if (!calls.ok()) return ErrorResponse(calls.status());
    int64_t cpu_us = 0;
    uint64_t memory = 0;
    for (const sandbox::CallSummary& call : calls->calls()) {
      cpu_us += call.result().usage().cpu_us();
      memory = std::max(memory, call.result().usage().memory_peak_bytes());
    }
    const int64_t now = base::WallMicros();
    const sandbox::Limits limits = LimitsOf(*box);
    const double age = static_cast<double>(std::max<int64_t>(now - box->created_us(), 1));
    return Answer(200, Json::array({{{"timestamp", Rfc3339(now)},
                                     {"timestampUnix", now / kMicrosPerSecond},
                                     {"cpuCount", Cpus()},
                                     {"cpuUsedPct", 100.0 * static_cast<double>(cpu_us) / age},
                                     {"memUsed", memory},
                                     {"memTotal", limits.memory_bytes()},
                                     {"memCache", 0},
                                     {"diskUsed", 0},
                                     {"diskTotal", limits.disk_bytes()}}}));
  }

  // One line a call.
  Response Logs(const Request& request) {
    const absl::StatusOr<sandbox::Sandbox> box = LiveBox(surface_, request.params[0]);
    if (!box.ok()) return ErrorResponse(box.status());
    const absl::StatusOr<sandbox::ListCallsResponse> calls = surface_.calls->ListCalls(box->id());
    if (!calls.ok()) return ErrorResponse(calls.status());
    Json lines = Json::array(), entries = Json::array();
    for (const sandbox::CallSummary& call : calls->calls()) {
      std::string line = call.call_id();
      for (const std::string& argument : call.argv()) line += fmt::format(" {}", argument);
      if (call.state() == sandbox::CALL_STATE_COMPLETED) {
        line += fmt::format(" -> {} {}", sandbox::Outcome_Name(call.result().outcome()),
                            call.result().exit_code());
      }
      const std::string time = Rfc3339(call.intent_us());
      lines.push_back({{"timestamp", time}, {"line", line}});
      entries.push_back({{"timestamp", time},
                         {"level", "info"},
                         {"message", line},
                         {"fields", {{"call_id", call.call_id()}}}});
    }
    return Answer(200, {{"logs", lines}, {"logEntries", entries}});
  }

  Response Alias(const Request& request) {
    if (const auto tags = templates_->Tags(request.params[0]); tags.ok()) {
      return Answer(200,
                    {{"templateID", TemplateStore::IdOf(tags->front().name())}, {"public", false}});
    }
    Substrate* const tier = Templates();
    if (tier == nullptr) return NoTemplates();
    const absl::StatusOr<std::vector<sandbox::Image>> images = tier->ListImages();
    if (!images.ok()) return ErrorResponse(images.status());
    for (const sandbox::Image& image : *images) {
      if (image.name() == request.params[0])
        return Answer(200, {{"templateID", image.name()}, {"public", true}});
    }
    return ErrorResponse(404, fmt::format("no image is called {}", request.params[0]));
  }

  // Also of a snapshot.
  Response RemoveTemplate(const Request& request) {
    Substrate* const tier = Templates();
    if (tier == nullptr) return NoTemplates();
    const std::string name = absl::StrJoin(request.params, "/");
    // Its image stays: other templates may begin with it, and builds go on from it.
    if (const absl::Status built = templates_->Remove(name); !absl::IsNotFound(built))
      return built.ok() ? EmptyAnswer(204) : ErrorResponse(built);
    const absl::Status removed =
        surface_.sandboxes->RemoveImage(name, [&] { return tier->RemoveImage(name); });
    return removed.ok() ? EmptyAnswer(204) : ErrorResponse(removed);
  }

 private:
  // Whose images the templates are; nullptr where there is none.
  Substrate* Templates() const {
    const auto tier = surface_.sandboxes->tiers().find(sandbox::TIER_CONTAINER);
    return tier == surface_.sandboxes->tiers().end() ? nullptr : tier->second;
  }
  static Response NoTemplates() {
    return ErrorResponse(404, "there is no container tier here, so there are no templates");
  }
  // One sandbox a trajectory, for ever: where it has ended, its calls are still replayed.
  static std::string TrajectoryBox(const std::string& trajectory) {
    return fmt::format("t{}", replay::Hex(replay::Sha256Of(trajectory)).substr(0, 20));
  }
  static unsigned Cpus() { return std::max(std::thread::hardware_concurrency(), 1u); }
  sandbox::Limits LimitsOf(const sandbox::Sandbox& box) const {
    return ResolveLimits({}, box.spec().limits(),
                         surface_.sandboxes->DefaultLimits(box.spec().tier()));
  }
  Json Details(const sandbox::Sandbox& box) const {
    const LeaseTable::Lease lease = leases_->Get(box.id()).value_or(LeaseTable::Lease());
    const int64_t end = lease.ends_us() > 0
                            ? lease.ends_us()
                            : base::WallMicros() + kTimeoutSecondsMax * kMicrosPerSecond;
    const sandbox::Limits limits = LimitsOf(box);
    Json json = BoxHandle(surface_, box);
    json["startedAt"] = Rfc3339(box.created_us());
    json["endAt"] = Rfc3339(end);
    json["state"] = IsPaused(box) ? "paused" : "running";
    json["cpuCount"] = Cpus();
    json["memoryMB"] = limits.memory_bytes() / kMebibyte;
    json["diskSizeMB"] = limits.disk_bytes() / kMebibyte;
    json["metadata"] = Metadata(box);
    if (box.has_network()) json["network"] = Network(box.network());
    json["lifecycle"] = {{"autoResume", true},
                         {"onTimeout", lease.pause_at_end() ? "pause" : "kill"}};
    return json;
  }

  const Surface surface_;
  LeaseTable* const leases_;
  TemplateStore* const templates_;
};

}  // namespace

LeaseTable::OnEnd EndOfLease(const Surface& surface, LeaseTable* leases) {
  return [surface, leases](const std::string& id, const LeaseTable::Lease& lease) {
    auto end = [surface, leases, id, lease]() -> absl::Status {
      if (!lease.pause_at_end()) {
        const absl::StatusOr<bool> stopped = surface.calls->Stop(id);
        if (!stopped.ok() && !absl::IsNotFound(stopped.status())) return stopped.status();
        return leases->Remove(id);
      }
      RETURN_IF_ERROR(surface.sandboxes->Pause(id));
      LeaseTable::Lease paused = lease;
      paused.set_ends_us(0);
      return leases->Put(id, paused);
    };
    const bool posted = surface.verbs->TryPost([id, end] {
      if (absl::Status status = end(); !status.ok()) {
        base::LogWarn(
            fmt::format("sandbox {} has reached its end and lives on: {}", id, status.message()));
      }
    });
    if (!posted)
      base::LogWarn(fmt::format("sandbox {} has reached its end: no thread is free", id));
  };
}

void AddControlRoutes(const Surface& surface, LeaseTable* leases, TemplateStore* templates,
                      Router* router) {
  auto control = std::make_shared<Control>(surface, leases, templates);
  auto add = [&](const char* method, const std::string& pattern,
                 std::function<Response(const Request&)> work) {
    AddOwnerRoute(surface, method, pattern, std::move(work), router);
  };
  using Verb = Response (Control::*)(const Request&);
  auto verb = [control](Verb member) {
    return [control, member](const Request& request) { return (control.get()->*member)(request); };
  };
  add("POST", "/v2/sandboxes",
      [control](const Request& request) { return control->Create(request, kTimeoutDefault); });
  add("POST", "/sandboxes",
      [control](const Request& request) { return control->Create(request, kTimeoutDefaultOld); });
  for (const char* prefix : {"", "/v2"}) {
    auto path = [&](const char* rest) { return fmt::format("{}/sandboxes{}", prefix, rest); };
    add("GET", path(""), verb(&Control::List));
    add("POST", path("/{}/connect"), verb(&Control::Connect));
    add("GET", path("/{}/logs"), verb(&Control::Logs));
  }
  add("POST", "/sandboxes/{}/resume", verb(&Control::Connect));
  add("GET", "/sandboxes/{}", verb(&Control::Get));
  add("DELETE", "/sandboxes/{}", verb(&Control::Remove));
  add("POST", "/sandboxes/{}/timeout", verb(&Control::Timeout));
  add("POST", "/sandboxes/{}/refreshes", verb(&Control::Timeout));
  add("POST", "/sandboxes/{}/pause", verb(&Control::Pause));
  add("PUT", "/sandboxes/{}/network", verb(&Control::SetNetwork));
  add("GET", "/sandboxes/{}/metrics", verb(&Control::Metrics));
  add("GET", "/templates/aliases/{}", verb(&Control::Alias));
  add("DELETE", "/templates/{}", verb(&Control::RemoveTemplate));
  // SDKs up to 2.50 do not escape the slash in a name.
  add("DELETE", "/templates/{}/{}", verb(&Control::RemoveTemplate));
  struct Absent {
    const char *method, *pattern, *what;
  };
  constexpr Absent kAbsent[] = {
      {"POST", "/templates", "builds of Dockerfiles: build with an SDK of version 2"},
      {"GET", "/templates", "a list of templates: reprise image ls has the images"},
  };
  for (const Absent& absent : kAbsent) {
    add(absent.method, absent.pattern,
        [what = absent.what](const Request&) { return ErrorResponse(501, what); });
  }
}

}  // namespace reprise::sandboxd::http
