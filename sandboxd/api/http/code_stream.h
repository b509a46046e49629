// One run of code in a code context, as lines of JSON. A context is a call that goes on (the
// program interpreter/context.py): what it wrote is in the journal, each line under the run that it
// belongs to, so that a client that comes again with its run's id gets all of it, from the first
// line.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/api/http/surface.h"

namespace reprise::sandboxd::http {

// The program's command for a language, without sandbox_id and call_id.
sandbox::ExecuteRequest ContextCall(std::string_view language);
// The lines of the program's output that belong to `run`, without its name.
std::vector<std::string> LinesOf(std::string_view output, std::string_view run);
// What is asked of a context for one run.
struct CodeRun {
  std::string run;          // its id: letters, digits, . _ -
  std::string line;         // the request, JSON; "" asks for nothing
  std::string last;         // the type of the event that ends it
  bool ends_alone = false;  // when the client goes, it is interrupted
};
// Responds when the context runs: a stream of the run's events (application/x-ndjson), or the error
// with which it could not be asked. `stream` is one of the context's call.
void RespondWithRun(const Surface& surface, std::shared_ptr<CallStream> stream, CodeRun run,
                    const Respond& respond);
// Waits until the context takes runs; FAILED_PRECONDITION when it ended instead.
void AwaitContext(const Surface& surface, std::shared_ptr<CallStream> stream,
                  std::function<void(absl::Status)> done);

}  // namespace reprise::sandboxd::http
