// The daemon's gRPC server: binds its addresses (unix sockets with mode 0600, TCP only with a
// token), serves SandboxService, and ends in order.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sandboxd/call_manager.h"
#include "sandboxd/sandbox_manager.h"
#include "sandboxd/watch_manager.h"

namespace reprise::sandboxd {

struct ServerOptions {
  std::vector<std::string> listen;  // "unix:/path" or "HOST:PORT" (port 0: any)
  std::string token_file;           // "" = no token, and no TCP
  size_t verb_threads = 32;         // verbs that block (create, stop, files)
  size_t verbs_max = 4096;          // verbs that wait for a thread; UNAVAILABLE above
};

class ApiServer {
 public:
  // Serves when it returns. The managers outlive it.
  static absl::StatusOr<std::unique_ptr<ApiServer>> Start(const ServerOptions& options,
                                                          CallManager* calls,
                                                          SandboxManager* sandboxes,
                                                          WatchManager* watches);
  // Stops listening, ends open requests, removes the sockets.
  virtual ~ApiServer() = default;
  // As bound: ports filled in.
  virtual const std::vector<std::string>& addresses() const = 0;
  // Stops listening and ends what is open; the destructor does the rest. REQUIRES:
  // CallManager::Detach and WatchManager::Shutdown were called, so that no stream waits for them.
  virtual void Shutdown() = 0;
};

}  // namespace reprise::sandboxd
