// The web viewer: its page at /, and what it reads: jobs, their trajectories, one trajectory turn
// by turn with the text and the log-probability of each token.
#pragma once

#include "replay/trajectory_log.h"
#include "rollout/http/surface.h"
#include "rollout/job_table.h"

namespace reprise::rollout::http {

// All outlive the router.
void AddViewerRoutes(const Surface& surface, JobTable* jobs, replay::TrajectoryLog* log,
                     web::Router* router);

}  // namespace reprise::rollout::http
