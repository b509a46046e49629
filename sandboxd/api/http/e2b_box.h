// What the parts of E2B's control plane have in common: how a sandbox reads in their answers, how
// long it lives, who may ask.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "absl/status/statusor.h"
#include "sandboxd/api/http/e2b.h"

namespace reprise::sandboxd::http {

inline constexpr int64_t kMicrosPerSecond = 1'000'000;

Response Answer(int status, const nlohmann::json& json);
Response EmptyAnswer(int status);
// The body; empty is {}. INVALID_ARGUMENT for what is no JSON object.
absl::StatusOr<nlohmann::json> ObjectOf(const Request& request);
// `micros`: since the epoch.
std::string Rfc3339(int64_t micros);
// As E2B's SDKs read one.
nlohmann::json ErrorJson(const absl::Status& status);

bool IsLive(const sandbox::Sandbox& box);
bool IsPaused(const sandbox::Sandbox& box);
// The template that it was made from, as it was asked for.
std::string TemplateOf(const sandbox::Sandbox& box);
// NOT_FOUND for those that were stopped or are lost, too.
absl::StatusOr<sandbox::Sandbox> LiveBox(const Surface& surface, const std::string& id);
// What the SDKs keep of a sandbox.
nlohmann::json BoxHandle(const Surface& surface, const sandbox::Sandbox& box);
// Lets it live `seconds` from now; the rest of the lease is as given. Durable on return.
absl::Status Prolong(LeaseTable* leases, const std::string& id, LeaseTable::Lease lease,
                     int64_t seconds);

// One page of what is `total` entries long: [begin, end). A page's token is where the next begins.
struct Page {
  size_t begin = 0, end = 0;
};
// Of a request's limit and nextToken. INVALID_ARGUMENT for what no page gave.
absl::StatusOr<Page> PageOf(const Request& request, size_t total);
void AddNextToken(const Page& page, size_t total, Response* response);

// A route of the owner's, whose work runs on the verb pool.
void AddOwnerRoute(const Surface& surface, const char* method, const std::string& pattern,
                   std::function<Response(const Request&)> work, Router* router);
// The same, where an error answers as ErrorResponse has it.
void AddOwnerVerb(const Surface& surface, const char* method, const std::string& pattern,
                  std::function<absl::StatusOr<Response>(const Request&)> work, Router* router);

}  // namespace reprise::sandboxd::http
