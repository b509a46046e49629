// SandboxFusion's /run_code on the function tier, with the verdicts that its clients turn into
// rewards: HTTP 200 with Success, Failed or SandboxError for everything that happened, 504 for
// overload only (clients try again on that), 4xx for requests that can never work.
#pragma once

#include "sandboxd/api/http/names.h"
#include "sandboxd/api/http/surface.h"

namespace reprise::sandboxd::http {

// POST /run_code, GET /v1/ping.
void AddRunCodeRoutes(const Surface& surface, Router* router);

}  // namespace reprise::sandboxd::http
