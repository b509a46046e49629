// One HTTP/1.1 request to somebody else's server, over TCP or TLS, within a deadline and with an
// answer of bounded size. A new connection each time, no redirects: for servers that are named in
// a configuration and asked now and then.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "http/message.h"
#include "http/url.h"

namespace reprise::http {

struct FetchRequest {
  std::string method = "POST";
  Url url;
  std::vector<Header> headers;  // besides Host and Content-Length
  std::string body;
  absl::Duration timeout = absl::Seconds(60);  // of everything together
  size_t answer_bytes_max = 1u << 20;          // of its body
  std::string ca_file;                         // PEM, instead of the system's roots; "" = those
};

struct FetchAnswer {
  int status = 0;
  std::string body;
};

// On the executor of the coroutine. UNAVAILABLE: no connection, or it broke; DEADLINE_EXCEEDED;
// RESOURCE_EXHAUSTED: the answer is too long; DATA_LOSS: what came is no HTTP; UNAUTHENTICATED: the
// certificate is not trusted; CANCELLED: the coroutine was. An answer of any status is OK.
boost::asio::awaitable<absl::StatusOr<FetchAnswer>> Fetch(const FetchRequest& request);

}  // namespace reprise::http
