// E2B's API: the control plane (sandboxes made, found, timed out, paused, removed) and what E2B's
// envd serves inside each sandbox (processes, files), so that its SDKs work unmodified with
// E2B_API_URL and E2B_SANDBOX_URL pointed here. Templates are images of the container tier; the
// suffix "@function", or metadata {"reprise.tier": ...}, chooses another tier.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "sandboxd/api/http/lease_table.h"
#include "sandboxd/api/http/names.h"
#include "sandboxd/api/http/surface.h"

namespace reprise::sandboxd::http {

inline constexpr char kTemplateLabel[] = "reprise.e2b.template";
inline constexpr char kTierLabel[] = "reprise.tier";
// Metadata that turns on replay: the sandbox belongs to this trajectory, whoever creates it, and
// the n-th process that is started since a create is the call TRAJECTORY/http/n. What ran before is
// answered from the journal; another command in its place is refused as a divergence.
inline constexpr char kTrajectoryLabel[] = "reprise.trajectory";
// The newest envd whose promises are kept here: standard input, octet-stream uploads; from 0.6.2 on
// it has file metadata and events with entries, which no tier has.
inline constexpr char kEnvdVersion[] = "0.5.7";

// All outlive the server.
class TemplateStore;
void AddControlRoutes(const Surface& surface, LeaseTable* leases, TemplateStore* templates,
                      Router* router);
void AddSnapshotRoutes(const Surface& surface, LeaseTable* leases, Router* router);
void AddProcessRoutes(const Surface& surface, LeaseTable* leases, Router* router);
void AddFilesystemRoutes(const Surface& surface, Router* router);
void AddWatchRoutes(const Surface& surface, Router* router);
// /contexts, and /execute for requests that name a sandbox as E2B's SDKs do: SWE-ReX has a route of
// that name, too.
void AddCodeRoutes(const Surface& surface, Router* router);
Route CodeExecuteRoute(const Surface& surface);
void AddFilesRoutes(const Surface& surface, Router* router);

// What LeaseTable calls when a sandbox has come to its end.
LeaseTable::OnEnd EndOfLease(const Surface& surface, LeaseTable* leases);

// ---- what the routes inside a sandbox have in common (e2b_envd.cc)

// The sandbox that a request is for: E2b-Sandbox-Id, or a Host of the form PORT-ID.domain, or the
// one that the X-Access-Token is of (SDKs up to 2.20 send nothing else after a connect); "" when it
// names none.
std::string SandboxIdOf(const Request& request);
// Refuses requests that name no sandbox or show no token of it.
Guard EnvdGuard(const Surface& surface);
// 502 for a sandbox that is gone: what E2B's proxy answers, and its SDKs know.
Response SandboxGone(std::string_view sandbox_id);
// Whether `id` can be used; the answer that says why not otherwise. Blocks.
std::optional<Response> CheckUsable(const Surface& surface, const std::string& id);
// The Linux user that the request chose, "" for the sandbox's own: E2B's default user is called
// "user", which images do not have.
std::string UserOf(const Request& request);

}  // namespace reprise::sandboxd::http
