// OpenAI's /v1/models, /v1/completions and /v1/chat/completions.
#pragma once

#include "rollout/http/surface.h"

namespace reprise::rollout::http {

void AddOpenAiRoutes(const Surface& surface, web::Router* router);

}  // namespace reprise::rollout::http
