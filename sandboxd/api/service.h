// SandboxService on the managers: every verb checks who calls, leaves gRPC's thread, and answers
// with one status.
#pragma once

#include <memory>

#include <grpcpp/impl/codegen/service_type.h>

#include "sandboxd/api/auth.h"
#include "sandboxd/call_manager.h"
#include "sandboxd/sandbox_manager.h"
#include "sandboxd/watch_manager.h"
#include "sandboxd/worker_pool.h"

namespace reprise::sandboxd {

// All outlive the service.
std::unique_ptr<grpc::Service> MakeSandboxService(const Authorizer* authorizer, WorkerPool* verbs,
                                                  CallManager* calls, SandboxManager* sandboxes,
                                                  WatchManager* watches);

}  // namespace reprise::sandboxd
