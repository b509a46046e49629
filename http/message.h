// What a handler of the HTTP port sees and answers, without a word of Beast: a request with its
// body (whole, or pulled piece by piece), and a response with its body (whole, or a source that is
// asked for pieces). Handlers answer through a callback, from any thread, so that none of them has
// to hold an I/O thread while it waits.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace reprise::http {

struct Header {
  std::string name, value;  // names of requests are in lower case
};

// A request's body for a route that takes it in pieces. Blocks: only on threads that may wait.
class BodyReader {
 public:
  virtual ~BodyReader() = default;
  // The next piece, "" at the end. INVALID_ARGUMENT (malformed), RESOURCE_EXHAUSTED (too long),
  // CANCELLED (the client went away or is too slow).
  virtual absl::StatusOr<std::string> Read() = 0;
};

// A response's body that is made while it is sent.
class BodySource {
 public:
  // A piece (not empty), nullopt at the end, or the error that cuts the body off.
  using Piece = absl::StatusOr<std::optional<std::string>>;
  virtual ~BodySource() = default;
  // Asks for the next piece; `deliver` runs exactly once, on any thread, perhaps before this
  // returns. REQUIRES: the last `deliver` has run.
  virtual void Next(std::function<void(Piece)> deliver) = 0;
  // The client has gone. What waits is delivered soon, with any value.
  virtual void Cancel() = 0;
  // Sent whenever `keepalive_every()` passes without a piece; "" sends nothing.
  virtual std::string KeepAlive() { return ""; }
  virtual absl::Duration keepalive_every() const { return absl::InfiniteDuration(); }
};

// The client of a request while its handler works on the answer. Thread-safe.
class Client {
 public:
  // `gone` runs at most once, when the client closes its end before it is answered; at once when it
  // has. A stream's client is watched by BodySource::Cancel instead.
  void OnGone(std::function<void()> gone);
  // The session's: the client has gone.
  void Gone();

 private:
  absl::Mutex mutex_;
  bool has_gone_ ABSL_GUARDED_BY(mutex_) = false;
  std::function<void()> gone_ ABSL_GUARDED_BY(mutex_);
};

struct Request {
  std::string method;                                      // as sent: "GET"
  std::string path;                                        // as sent, without the query
  std::vector<std::string> segments;                       // decoded
  std::vector<std::pair<std::string, std::string>> query;  // decoded, in order
  std::vector<std::string> params;                         // what the route's {} matched, in order
  std::vector<Header> headers;
  std::string body;                    // of a route that takes it whole
  std::shared_ptr<BodyReader> reader;  // of one that takes it in pieces
  std::shared_ptr<Client> client = std::make_shared<Client>();

  // The first header of this name (lower case), "" when there is none.
  std::string_view header(std::string_view name) const;
  // The first parameter of this name; nullptr when there is none.
  const std::string* query_param(std::string_view name) const;
};

struct Response {
  int status = 200;
  std::string content_type;  // "" = none
  std::vector<Header> headers;
  std::string body;
  std::shared_ptr<BodySource> stream;  // instead of `body`
};

using RequestPtr = std::shared_ptr<const Request>;
// Exactly once, from any thread.
using Respond = std::function<void(Response)>;
using Handler = std::function<void(RequestPtr, Respond)>;
// Looks at a request before its body is read; a response refuses it.
using Guard = std::function<std::optional<Response>(const Request&)>;

// {"code":status,"message":message}, the error form of the whole port outside of other protocols.
Response ErrorResponse(int status, std::string_view message);
// The HTTP status that fits a code: NOT_FOUND 404, RESOURCE_EXHAUSTED 429, UNAVAILABLE 503, ...
int HttpStatus(absl::StatusCode code);
Response ErrorResponse(const absl::Status& status);
// `text` as JSON text.
Response JsonResponse(int status, std::string text);

// Equal but for ASCII case.
bool EqualsIgnoreCase(std::string_view a, std::string_view b);

// The reason phrase of a status.
std::string_view Reason(int status);

}  // namespace reprise::http
