// What the surfaces share on the way from a request that was read to its answer.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "rollout/http/openai_format.h"
#include "rollout/http/openai_request.h"
#include "rollout/http/surface.h"

namespace reprise::rollout::http {

// A formatter for the request as it will be decoded, which is where the request of a trajectory has
// the trajectory's tokens as its prompt.
using MakeFormatter = std::function<std::unique_ptr<Formatter>(
    const OpenAiRequest& request, AnswerHead head, const ServedModel& model)>;
using ReadRequest = std::function<absl::StatusOr<OpenAiRequest>(const engine::JsonValue& body,
                                                                const ServedModel& model)>;

// Reads the body, finds its model ("model"; the first when it names none), takes a place, puts the
// request into its trajectory where it has one, and decodes. `prefix`: of the answer's id. An error
// that comes back was not answered.
absl::Status Serve(const Surface& surface, const web::RequestPtr& http, const web::Respond& respond,
                   std::string_view prefix, const ReadRequest& read, const MakeFormatter& format);

}  // namespace reprise::rollout::http
