// The streaming verbs as gRPC reactors: events of a call or of a watch, a file out of a sandbox, a
// file into one. Events need no thread while they wait, so a thousand callers may wait for their
// calls; files hold one thread of the verb pool each.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/call_stream.h"
#include "sandboxd/watch_manager.h"
#include "sandboxd/worker_pool.h"

namespace reprise::sandboxd {

// Each makes a reactor that frees itself.

grpc::ServerWriteReactor<sandbox::ExecuteEvent>* StreamCall(std::shared_ptr<CallStream> stream);

// Ends with `status` at once.
grpc::ServerWriteReactor<sandbox::ExecuteEvent>* RefuseStream(const absl::Status& status);

// `read` runs on `verbs` and hands over the file piece by piece; it is stopped by an error when the
// client goes.
using ReadBody =
    std::function<absl::Status(const std::function<absl::Status(std::string_view)>& chunk)>;
grpc::ServerWriteReactor<sandbox::FileChunk>* StreamFileOut(WorkerPool* verbs, ReadBody read);

// `open` runs on `verbs`; the stream goes on until the watch ends or the client goes, without a
// thread.
using OpenWatch = std::function<absl::StatusOr<std::shared_ptr<WatchStream>>()>;
grpc::ServerWriteReactor<sandbox::WatchEvent>* StreamWatch(WorkerPool* verbs, WatchManager* watches,
                                                           OpenWatch open);

// `write` runs on `verbs` with the first message, and pulls data until "".
using WriteBody =
    std::function<absl::Status(const sandbox::WriteFileRequest& first,
                               const std::function<absl::StatusOr<std::string>()>& next)>;
// `refused` not OK ends it at once.
grpc::ServerReadReactor<sandbox::WriteFileRequest>* StreamFileIn(
    WorkerPool* verbs, sandbox::WriteFileResponse* response, const absl::Status& refused,
    WriteBody write);

}  // namespace reprise::sandboxd
