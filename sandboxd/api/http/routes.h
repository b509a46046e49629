// Every route of sandboxd's HTTP port, and its description at /openapi.json.
#pragma once

#include "sandboxd/api/http/lease_table.h"
#include "sandboxd/api/http/surface.h"

namespace reprise::sandboxd::http {

// All outlive the server. Adding looks at none of them.
class TemplateBuilds;
// `tls`: whether clients reach the port by https.
void AddAllRoutes(const Surface& surface, LeaseTable* leases, TemplateBuilds* builds, bool tls,
                  Router* router);

}  // namespace reprise::sandboxd::http
