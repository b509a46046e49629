// What every surface of the HTTP port works with, and the ways in which their handlers leave the
// I/O threads: blocking verbs go to the verb pool, calls are followed by callbacks.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "sandboxd/api/http/access.h"
#include "sandboxd/api/http/names.h"
#include "sandboxd/call_manager.h"
#include "sandboxd/sandbox_manager.h"
#include "sandboxd/watch_manager.h"
#include "sandboxd/worker_pool.h"

namespace reprise::sandboxd::http {

// All outlive the server.
struct Surface {
  CallManager* calls = nullptr;
  SandboxManager* sandboxes = nullptr;
  WatchManager* watches = nullptr;
  WorkerPool* verbs = nullptr;
  const Access* access = nullptr;
  bool internet = false;  // HttpApiOptions::internet
};

// How a surface writes errors.
using ErrorForm = std::function<Response(const absl::Status&)>;

// A handler that runs `work` on the verb pool. Too many waiting: `form` of an UNAVAILABLE.
Handler OnVerbThread(const Surface& surface, ErrorForm form,
                     std::function<Response(const Request&)> work);
// What is said when that pool takes no more.
absl::Status Busy();
// Posts `work`; when the pool refuses, responds with `form` of an UNAVAILABLE.
void PostVerb(const Surface& surface, const ErrorForm& form, const Respond& respond,
              std::function<void()> work);

// All that a call wrote, and how it ended.
struct Collected {
  std::string out, err;  // what the journal kept; the first `bytes_max` of each
  bool cut = false;      // there was more
  sandbox::Started started;
  sandbox::Result result;
};
// Follows `stream` to its end; `done` runs once, on any thread.
void Collect(std::shared_ptr<CallStream> stream, size_t bytes_max,
             std::function<void(absl::StatusOr<Collected>)> done);
// The same on a thread that may wait.
absl::StatusOr<Collected> CollectNow(std::shared_ptr<CallStream> stream, size_t bytes_max);

// What a client that tries again says once more: its Idempotency-Key, else its X-Request-ID. ""
// without both.
std::string_view RetryKey(const Request& request);
// The text of a header or id as part of a call_id: characters that ids may not have become '-', and
// long ones are cut and told apart by their hash.
std::string IdPart(std::string_view text);

}  // namespace reprise::sandboxd::http
