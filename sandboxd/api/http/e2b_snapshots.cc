// E2B's snapshots and forks. A snapshot is an image of the sandbox's files, and its id is that
// image's name, so that a create finds it as its template. Running processes are in neither.
#include <algorithm>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/ids.h"
#include "base/status_macros.h"
#include "replay/sha256.h"
#include "sandboxd/api/http/e2b_box.h"
#include "sandboxd/api/http/e2b_create.h"
#include "sandboxd/image/image_name.h"

namespace reprise::sandboxd::http {
namespace {

using Json = nlohmann::json;

constexpr int64_t kForkTimeout = 300;  // seconds, where the request has none
constexpr int64_t kForksMax = 100;     // of one request

Json SnapshotJson(const sandbox::SnapshotInfo& info) {
  return {{"snapshotID", info.image().name()}, {"names", Json::array({info.image().name()})}};
}

class Snapshots {
 public:
  Snapshots(Surface surface, LeaseTable* leases) : surface_(surface), leases_(leases) {}

  absl::StatusOr<Response> Create(const Request& request) const {
    ASSIGN_OR_RETURN(const Json body, ObjectOf(request));
    ASSIGN_OR_RETURN(const sandbox::Sandbox box, LiveBox(surface_, request.params[0]));
    if (body.contains("memory") && body["memory"] == true) {
      return absl::UnimplementedError(
          "memory: a snapshot here has files only; leave it out, or ask for mode 'filesystem'");
    }
    sandbox::SnapshotRequest snapshot;
    snapshot.set_sandbox_id(box.id());
    if (body.contains("name") && body["name"].is_string() && body["name"] != "") {
      snapshot.set_name(body["name"]);
      RETURN_IF_ERROR(CheckImageName(snapshot.name()));
    }
    if (const std::string_view key = request.header("idempotency-key"); !key.empty())
      snapshot.set_snapshot_id(IdPart(key));
    ASSIGN_OR_RETURN(const sandbox::SnapshotInfo info, surface_.calls->Snapshot(snapshot));
    return Answer(201, SnapshotJson(info));
  }

  absl::StatusOr<Response> List(const Request& request) const {
    const std::string* box = request.query_param("sandboxID");
    const std::string* name = request.query_param("name");
    ASSIGN_OR_RETURN(std::vector<sandbox::SnapshotInfo> all, surface_.sandboxes->AllSnapshots());
    std::erase_if(all, [&](const sandbox::SnapshotInfo& info) {
      return (box != nullptr && *box != info.sandbox_id()) ||
             (name != nullptr && *name != info.image().name());
    });
    std::sort(all.begin(), all.end(),
              [](const auto& a, const auto& b) { return a.made_us() > b.made_us(); });
    ASSIGN_OR_RETURN(const Page page, PageOf(request, all.size()));
    Json entries = Json::array();
    for (size_t i = page.begin; i < page.end; ++i) entries.push_back(SnapshotJson(all[i]));
    Response response = Answer(200, entries);
    AddNextToken(page, all.size(), &response);
    return response;
  }

  // Each fork has a result of its own, but where none can be made at all.
  absl::StatusOr<Response> Fork(const Request& request) const {
    ASSIGN_OR_RETURN(const Json body, ObjectOf(request));
    ASSIGN_OR_RETURN(const int64_t timeout, ParseTimeout(request.body, kForkTimeout));
    const Json wanted = body.value("count", Json(1));
    if (!wanted.is_number_integer() || wanted < 1 || wanted > kForksMax)
      return absl::InvalidArgumentError(fmt::format("count must be 1 to {}", kForksMax));
    ASSIGN_OR_RETURN(const sandbox::Sandbox box, LiveBox(surface_, request.params[0]));
    Json results = Json::array();
    for (int64_t i = 0; i < wanted.get<int64_t>(); ++i) {
      sandbox::ForkRequest fork;
      fork.set_sandbox_id(box.id());
      fork.set_new_id(NewId(request, box.id(), i));
      const absl::StatusOr<sandbox::Sandbox> made = ForkOne(fork, timeout);
      if (absl::IsUnimplemented(made.status())) return made.status();
      results.push_back(made.ok() ? Json{{"sandbox", BoxHandle(surface_, *made)}}
                                  : Json{{"error", ErrorJson(made.status())}});
    }
    return Answer(201, results);
  }

 private:
  // The same for a request that is sent again with its key.
  static std::string NewId(const Request& request, const std::string& id, int64_t number) {
    const std::string_view key = request.header("idempotency-key");
    if (key.empty()) return fmt::format("i{}", base::RandomHex(10));
    const std::string digest = replay::Sha256Of(fmt::format("{}\n{}\n{}", id, number, key));
    return fmt::format("i{}", replay::Hex(digest).substr(0, 20));
  }

  absl::StatusOr<sandbox::Sandbox> ForkOne(const sandbox::ForkRequest& fork,
                                           int64_t timeout_s) const {
    ASSIGN_OR_RETURN(const sandbox::CreateResponse made, surface_.calls->Fork(fork));
    LeaseTable::Lease lease;
    lease.set_pause_at_end(
        leases_->Get(fork.sandbox_id()).value_or(LeaseTable::Lease()).pause_at_end());
    if (absl::Status kept = Prolong(leases_, fork.new_id(), lease, timeout_s); !kept.ok()) {
      if (!made.existed()) (void)surface_.calls->Stop(fork.new_id());
      return kept;
    }
    return made.sandbox();
  }

  const Surface surface_;
  LeaseTable* const leases_;
};

}  // namespace

void AddSnapshotRoutes(const Surface& surface, LeaseTable* leases, Router* router) {
  auto snapshots = std::make_shared<Snapshots>(surface, leases);
  using Verb = absl::StatusOr<Response> (Snapshots::*)(const Request&) const;
  auto add = [&](const char* method, const char* pattern, Verb verb) {
    AddOwnerVerb(
        surface, method, pattern,
        [snapshots, verb](const Request& request) { return (snapshots.get()->*verb)(request); }, router);
  };
  add("POST", "/sandboxes/{}/snapshots", &Snapshots::Create);
  add("GET", "/snapshots", &Snapshots::List);
  add("POST", "/sandboxes/{}/fork", &Snapshots::Fork);
}

}  // namespace reprise::sandboxd::http
