#include "sandboxd/microvm/firecracker_api.h"

#include <fmt/format.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

#include "base/clock.h"
#include "base/status_macros.h"
#include "sandboxd/link/agent_link.h"

namespace reprise::sandboxd::microvm {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using nlohmann::json;
using Local = asio::local::stream_protocol;
using Request = http::request<http::string_body>;
using Parser = http::response_parser<http::string_body>;

constexpr size_t kAnswerBytesMax = 64 << 10;
constexpr int64_t kAwaitPollUs = 2'000;

auto Into(beast::error_code& error) { return asio::redirect_error(asio::use_awaitable, error); }

asio::awaitable<void> Exchange(beast::basic_stream<Local>& stream, const Local::endpoint& server,
                               const Request& request, Parser& answer, beast::error_code& error) {
  co_await stream.async_connect(server, Into(error));
  if (error) co_return;
  co_await http::async_write(stream, request, Into(error));
  if (error) co_return;
  beast::flat_buffer buffer;
  co_await http::async_read(stream, buffer, answer, Into(error));
}

absl::Status CheckPath(const std::string& path) {
  if (path.size() < sizeof(sockaddr_un::sun_path)) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{} is too long for a socket", path));
}

}  // namespace

absl::Status FirecrackerApi::Await(int64_t timeout_ms) const {
  RETURN_IF_ERROR(CheckPath(socket_));
  const int64_t deadline = base::MonotonicMicros() + timeout_ms * 1000;
  asio::io_context io(1);
  while (true) {
    beast::error_code error;
    Local::socket(io).connect(Local::endpoint(socket_), error);
    if (!error) return absl::OkStatus();
    if (base::MonotonicMicros() > deadline)
      return absl::UnavailableError(fmt::format("connect to {}: {}", socket_, error.message()));
    usleep(kAwaitPollUs);
  }
}

absl::Status FirecrackerApi::Send(const char* method, const std::string& path,
                                  const std::string& body, int64_t timeout_ms) const {
  RETURN_IF_ERROR(CheckPath(socket_));
  const std::string what = fmt::format("Firecracker, {} {}", method, path);
  Request request(http::string_to_verb(method), path, 11);
  request.set(http::field::host, "localhost");
  request.set(http::field::accept, "application/json");
  request.set(http::field::content_type, "application/json");
  request.body() = body;
  request.prepare_payload();
  Parser answer;
  answer.body_limit(kAnswerBytesMax);
  const Local::endpoint server(socket_);
  beast::error_code error;
  asio::io_context io(1);
  beast::basic_stream<Local> stream(io);
  stream.expires_after(std::chrono::milliseconds(timeout_ms));
  asio::co_spawn(io, Exchange(stream, server, request, answer, error), asio::detached);
  io.run();
  if (error == beast::error::timeout)
    return absl::DeadlineExceededError(what + ": no answer in time");
  // What ends in the middle of an answer is a broken connection, not another language.
  if (error == http::error::end_of_stream || error == http::error::partial_message)
    return absl::UnavailableError(what + ": the connection ended");
  if (error.category() == http::make_error_code(http::error::bad_version).category())
    return absl::DataLossError(what + ": the answer is no HTTP");
  if (error) return absl::UnavailableError(fmt::format("{}: {}", what, error.message()));
  const unsigned status = answer.get().result_int();
  if (status >= 200 && status < 300) return absl::OkStatus();
  const json fault = json::parse(answer.get().body(), nullptr, false);
  std::string words = "it says nothing";
  if (fault.is_object() && fault.contains("fault_message") && fault["fault_message"].is_string())
    words = fault["fault_message"].get<std::string>();
  return absl::InternalError(fmt::format("{}: {} ({})", what, status, Printable(words)));
}

}  // namespace reprise::sandboxd::microvm
