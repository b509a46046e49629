// A call as the event stream of an envd process; and unary verbs of envd's services.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "sandboxd/api/http/connect_codec.h"
#include "sandboxd/api/http/e2b.h"
#include "sandboxd/call_stream.h"

namespace reprise::sandboxd::http {

// A process as its stream shows it.
struct ShownProcess {
  uint32_t pid = 0;
  bool on_terminal = false;  // its output is `pty` data
};

// Responds once the call has begun: start, data..., end, and the end of the stream, keep-alive
// events in between. X-Reprise-Replayed says that the journal answers. A call that cannot begin is
// answered with a whole body, its error in the only frame.
void RespondWithProcess(std::shared_ptr<CallStream> stream, const Codec& codec,
                        const ShownProcess& process, absl::Duration keepalive,
                        const Respond& respond);

// How often a stream's client wants a sign of life; the default where it does not say.
absl::Duration KeepAliveOf(const Request& request);
// A stream that has nothing but its end.
Response StreamError(const Codec& codec, const absl::Status& status);
// 415: a server stream was asked for in another form.
Response NoStream();

// A handler of `verb`: absl::Status Service::verb(sandbox id, const In&, Out*), on the verb pool.
template <typename In, typename Out, typename Service>
Handler UnaryVerb(const Surface& surface, std::shared_ptr<Service> service,
                  absl::Status (Service::*verb)(const std::string&, const In&, Out*)) {
  auto work = [surface, service = std::move(service), verb](const Request& request) -> Response {
    const absl::StatusOr<Codec> codec = CodecOf(request.header("content-type"));
    if (!codec.ok() || codec->streaming)
      return ErrorResponse(415, "send application/json or application/proto");
    const std::string id = SandboxIdOf(request);
    if (std::optional<Response> gone = CheckUsable(surface, id); gone.has_value()) return *gone;
    In in;
    Out out;
    absl::Status status = Decode(*codec, request.body, &in);
    if (status.ok()) status = (service.get()->*verb)(id, in, &out);
    return status.ok() ? ConnectResponse(*codec, out) : ConnectError(status);
  };
  return OnVerbThread(
      surface, [](const absl::Status& status) { return ConnectError(status); }, std::move(work));
}

}  // namespace reprise::sandboxd::http
