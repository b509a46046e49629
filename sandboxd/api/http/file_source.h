// A file that is read by a blocking loop, sent as a response's body: the loop waits until a piece
// was taken, so that a slow client holds one piece and one thread, not the file.
#pragma once

#include <functional>
#include <string_view>

#include "absl/status/status.h"
#include "sandboxd/api/http/names.h"

namespace reprise::sandboxd::http {

// Runs `read` on this thread, to its end. Answers with `response` (its status and headers) and the
// stream at the first piece, with an empty body when there is none, and with `form` of an error
// that comes before.
void SendFile(
    const Respond& respond, Response response,
    const std::function<Response(const absl::Status&)>& form,
    const std::function<absl::Status(const std::function<absl::Status(std::string_view)>&)>& read);

}  // namespace reprise::sandboxd::http
