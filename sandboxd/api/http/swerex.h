// SWE-ReX's runtime routes on one sandbox, so that its RemoteRuntime works unmodified. The sandbox
// is named by the path (host "http://HOST:PORT/swerex/SANDBOX", auth_token TOKEN), or by the key
// (auth_token "SANDBOX.TOKEN", where TOKEN is the daemon's or the sandbox's access token). A
// command is one durable call: a repeated X-Request-ID gets the first one's answer.
//
// A session is a state directory in the sandbox, not a process: every command runs in a shell of
// its own that takes the state over (variables, functions, options, directory) and leaves it
// behind. So a command of a session is as durable as any other; programs that stay are not offered.
#pragma once

#include "sandboxd/api/http/names.h"
#include "sandboxd/api/http/surface.h"

namespace reprise::sandboxd::http {

void AddSwerexRoutes(const Surface& surface, Router* router);

}  // namespace reprise::sandboxd::http
