// SandboxFusion's /run_jupyter on the function tier: the cells run one after another in one Python
// that keeps its state (interpreter/context.py), as one call. Its answers follow /run_code's rules.
#pragma once

#include "sandboxd/api/http/names.h"
#include "sandboxd/api/http/surface.h"

namespace reprise::sandboxd::http {

// POST /run_jupyter.
void AddRunJupyterRoute(const Surface& surface, Router* router);

}  // namespace reprise::sandboxd::http
