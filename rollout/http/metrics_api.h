// GET /metrics: the numbers of the daemon for Prometheus, under the names that vLLM and SGLang use
// with "reprise_" before them. docs/metrics.md lists them.
#pragma once

#include "rollout/http/surface.h"
#include "rollout/job_table.h"

namespace reprise::rollout::http {

// `jobs` outlives the router.
void AddMetricsRoutes(const Surface& surface, JobTable* jobs, web::Router* router);

}  // namespace reprise::rollout::http
