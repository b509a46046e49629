// POST /v1/trajectories/{name}/finish: the end of a trajectory that an agent outside drove.
#pragma once

#include "rollout/http/surface.h"

namespace reprise::rollout::http {

void AddTrajectoryRoutes(const Surface& surface, web::Router* router);

}  // namespace reprise::rollout::http
