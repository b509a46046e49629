// SGLang's native routes, as RL frameworks use them: /generate (text or ids in, ids and
// log-probabilities out, streamed or not), /pause_generation, /continue_generation,
// /update_weights_from_disk, /health, /get_model_info.
#pragma once

#include "rollout/http/surface.h"
#include "rollout/job_table.h"

namespace reprise::rollout::http {

// `jobs` outlives the router.
void AddSglangRoutes(const Surface& surface, JobTable* jobs, web::Router* router);

}  // namespace reprise::rollout::http
