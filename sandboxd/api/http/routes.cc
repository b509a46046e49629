#include "sandboxd/api/http/routes.h"

#include <string>
#include <utility>

#include "sandboxd/api/http/e2b_templates.h"
#include "sandboxd/api/http/mcp.h"
#include "sandboxd/api/http/openapi.h"
#include "sandboxd/api/http/run_code.h"
#include "sandboxd/api/http/run_jupyter.h"
#include "sandboxd/api/http/swerex.h"

namespace reprise::sandboxd::http {

void AddAllRoutes(const Surface& surface, LeaseTable* leases, TemplateBuilds* builds, bool tls,
                  Router* router) {
  AddRunCodeRoutes(surface, router);
  AddRunJupyterRoute(surface, router);
  AddControlRoutes(surface, leases, builds == nullptr ? nullptr : builds->store(), router);
  AddTemplateRoutes(surface, builds, tls, router);
  AddSnapshotRoutes(surface, leases, router);
  AddProcessRoutes(surface, leases, router);
  AddFilesystemRoutes(surface, router);
  AddWatchRoutes(surface, router);
  AddFilesRoutes(surface, router);
  AddCodeRoutes(surface, router);
  AddSwerexRoutes(surface, router);
  AddMcpRoutes(surface, router);
  // It holds nothing that is not in the documentation: no token is asked for.
  Route openapi;
  openapi.method = "GET";
  openapi.pattern = "/openapi.json";
  openapi.handler = [](RequestPtr, Respond respond) {
    respond(JsonResponse(200, std::string(kOpenApi, kOpenApiBytes)));
  };
  router->Add(std::move(openapi));
}

}  // namespace reprise::sandboxd::http
