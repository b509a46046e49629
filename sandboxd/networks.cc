// What sandboxes may reach: the policy of each is in its journal record before its tier puts it in
// force, so that a restart, or a sandbox that is made again, begins with the newest.
#include <utility>

#include <fmt/format.h>

#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/limits.h"
#include "sandboxd/sandbox_manager.h"
#include "sandboxd/spec.h"

namespace reprise::sandboxd {

namespace journal = replay::journal;

absl::Status SandboxManager::CheckHasNetwork(Substrate* substrate) {
  const sandbox::TierInfo tier = substrate->Describe();
  const auto verb = tier.verbs().find("network");
  if (verb != tier.verbs().end() && verb->second == "yes") return absl::OkStatus();
  return absl::UnimplementedError(fmt::format(
      "spec.network: {}; leave it out, or choose another tier",
      verb == tier.verbs().end()
          ? fmt::format("{} has no network", sandbox::Tier_Name(tier.tier()))
          : fmt::format("{} has none here: {}", sandbox::Tier_Name(tier.tier()), verb->second)));
}

absl::Status SandboxManager::SetNetwork(const sandbox::SetNetworkRequest& request) {
  const std::string& id = request.sandbox_id();
  RETURN_IF_ERROR(base::CheckId(id, "sandbox_id", /*allow_slash=*/true));
  RETURN_IF_ERROR(CheckNetwork(request.network()));
  EntryPtr entry = Lookup(id);
  if (entry == nullptr) return Absent(id);
  absl::MutexLock verb(&entry->verb);
  RETURN_IF_ERROR(options_.journal_health());
  RETURN_IF_ERROR(Reach(entry.get()));
  {
    absl::MutexLock lock(&entry->mutex);
    if (entry->stopping || !IsLive(entry->record.state())) {
      return absl::FailedPreconditionError(
          fmt::format("sandbox {} is {}", id, sandbox::SandboxState_Name(entry->record.state())));
    }
  }
  ASSIGN_OR_RETURN(Lease lease, LeaseOf(entry.get()));
  RETURN_IF_ERROR(CheckHasNetwork(lease.substrate));
  RETURN_IF_ERROR(PutRecord(entry.get(), [&](journal::SandboxRecord* record) {
    *record->mutable_network() = request.network();
  }));
  auto spec = std::make_shared<sandbox::SandboxSpec>(*lease.spec);
  *spec->mutable_network() = request.network();
  lease.spec = spec;
  {
    absl::MutexLock lock(&entry->mutex);
    entry->spec = std::move(spec);
  }
  return lease.substrate->SetNetwork(lease.ref());
}

absl::StatusOr<sandbox::GetNetworkResponse> SandboxManager::GetNetwork(const std::string& id) {
  ASSIGN_OR_RETURN(const sandbox::Sandbox box, Get(id));
  sandbox::GetNetworkResponse response;
  if (!box.has_network()) return response;
  *response.mutable_network() = box.network();
  if (!IsLive(box.state())) return response;
  ASSIGN_OR_RETURN(const Lease lease, Find(id));
  ASSIGN_OR_RETURN(*response.mutable_counters(), lease.substrate->CountNetwork(lease.ref()));
  return response;
}

}  // namespace reprise::sandboxd
