// The HTTP port put together: the server, and the surfaces that it serves (SandboxFusion's
// /run_code; E2B's control plane and envd; SWE-ReX's runtime; MCP). docs/http.md says what each can do.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sandboxd/call_manager.h"
#include "sandboxd/sandbox_manager.h"
#include "sandboxd/watch_manager.h"
#include "storage/store.h"

namespace reprise::sandboxd::http {

struct HttpApiOptions {
  std::string listen;      // HOST:PORT (port 0: any)
  std::string token_file;  // required: every TCP client must show the token
  std::string state_dir;   // of the leases (FORMAT.md); made when missing
  storage::Durability durability = storage::Durability::kFsync;
  std::string tls_cert, tls_key;  // PEM files; both, or none for plain HTTP
  bool internet = false;          // E2B's allow_internet_access opens every public address
  const storage::Store* journal = nullptr;  // the daemon's, for /metrics; outlives the port
  size_t verb_threads = 32;       // verbs that block (create, stop, files)
  size_t verbs_max = 4096;        // verbs that wait for a thread; refused as overload above
};

class HttpApi {
 public:
  // Serves when it returns. The managers outlive it.
  static absl::StatusOr<std::unique_ptr<HttpApi>> Start(const HttpApiOptions& options,
                                                        CallManager* calls,
                                                        SandboxManager* sandboxes,
                                                        WatchManager* watches);
  virtual ~HttpApi() = default;
  // "http://HOST:PORT" or "https://HOST:PORT", as bound.
  virtual const std::string& address() const = 0;
  // Stops listening and ends what is open. REQUIRES: CallManager::Detach and
  // WatchManager::Shutdown were called, so that no stream waits for them. Idempotent.
  virtual void Shutdown() = 0;
};

}  // namespace reprise::sandboxd::http
