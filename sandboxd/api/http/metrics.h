// GET /metrics of sandboxd, in Prometheus' text form (docs/metrics.md).
#pragma once

#include "sandboxd/api/http/surface.h"
#include "storage/store.h"

namespace reprise::sandboxd::http {

// `journal`: the daemon's; outlives the server.
void AddMetricsRoute(const Surface& surface, const storage::Store* journal, Router* router);

}  // namespace reprise::sandboxd::http
