// Every route of sandboxd's HTTP port, and its description at /openapi.json.
#pragma once

#include "sandboxd/api/http/lease_table.h"
#include "sandboxd/api/http/surface.h"

namespace reprise::sandboxd::http {

// All outlive the server. Adding looks at none of them.
void AddAllRoutes(const Surface& surface, LeaseTable* leases, Router* router);

}  // namespace reprise::sandboxd::http
