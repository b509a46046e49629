// The HTTP port of rolloutd put together: the models that it serves, the server, and the surfaces
// (docs/openai.md says what each can do).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "replay/trajectory_log.h"
#include "rollout/job_table.h"

namespace reprise::rollout::http {

struct HttpApiOptions {
  std::string listen;                 // HOST:PORT (port 0: any)
  std::string token_file;             // required: every client must show the token
  std::vector<std::string> models;    // checkpoint directories; none: viewer and metrics alone
  std::string tls_cert, tls_key;      // PEM files; both, or none for plain HTTP
  std::string thinking = "thinking";  // of requests that do not choose: "thinking" or "chat"
  size_t requests_max = 256;          // under way at one time; 429 above
};

class HttpApi {
 public:
  // Loads the models, and serves when it returns. `jobs` and `log` outlive it.
  static absl::StatusOr<std::unique_ptr<HttpApi>> Start(const HttpApiOptions& options,
                                                        JobTable* jobs, replay::TrajectoryLog* log);
  virtual ~HttpApi() = default;
  // "http://HOST:PORT" or "https://HOST:PORT", as bound.
  virtual const std::string& address() const = 0;
};

}  // namespace reprise::rollout::http
