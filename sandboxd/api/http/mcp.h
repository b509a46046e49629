// sandboxd's verbs as a Model Context Protocol server (streamable HTTP): JSON-RPC 2.0 messages
// POSTed to /mcp, one answer each, nothing that the server starts itself. A session is a name that
// the daemon made and knows again, also after a restart. The id of a request within its session
// names its call (mcp/SESSION/ID): the same request sent again is the same call.
#pragma once

#include "sandboxd/api/http/surface.h"

namespace reprise::sandboxd::http {

// All outlive the server.
void AddMcpRoutes(const Surface& surface, Router* router);

}  // namespace reprise::sandboxd::http
