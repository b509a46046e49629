// The HTTP server's library (http/) under a short name, for the surfaces of rolloutd.
#pragma once

#include "http/message.h"
#include "http/router.h"

namespace reprise::rollout::http {

namespace web = ::reprise::http;

}  // namespace reprise::rollout::http
