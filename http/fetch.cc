#include "http/fetch.h"

#include <openssl/ssl.h>

#include <chrono>
#include <functional>
#include <memory>
#include <utility>

#include <fmt/format.h>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/ssl/host_name_verification.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>

namespace reprise::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr uint32_t kAnswerHeaderBytesMax = 64u << 10;

auto Into(ErrorCode& ec) { return asio::redirect_error(asio::use_awaitable, ec); }

// Ends whatever the fetch waits for when its time is over.
class Deadline {
 public:
  Deadline(asio::any_io_executor executor, absl::Duration after, std::function<void()> ring)
      : timer_(std::move(executor)), state_(std::make_shared<State>()) {
    state_->ring = std::move(ring);
    timer_.expires_after(std::chrono::milliseconds(absl::ToInt64Milliseconds(after)));
    timer_.async_wait([state = state_](const ErrorCode& ec) {
      if (ec || !state->ring) return;
      state->rang = true;
      state->ring();
    });
  }
  ~Deadline() { state_->ring = nullptr; }
  Deadline(const Deadline&) = delete;
  bool rang() const { return state_->rang; }

 private:
  struct State {
    std::function<void()> ring;
    bool rang = false;
  };
  asio::steady_timer timer_;
  const std::shared_ptr<State> state_;
};

template <typename Stream>
asio::awaitable<FetchAnswer> Exchange(Stream& stream, const FetchRequest& request, ErrorCode& ec) {
  beast::http::request<beast::http::string_body> out(beast::http::string_to_verb(request.method),
                                                     request.url.target, 11);
  out.set(beast::http::field::host, request.url.authority());
  out.set(beast::http::field::connection, "close");
  for (const Header& header : request.headers) out.insert(header.name, header.value);
  out.body() = request.body;
  out.prepare_payload();
  co_await beast::http::async_write(stream, out, Into(ec));
  FetchAnswer answer;
  if (ec) co_return answer;
  beast::flat_buffer buffer;
  beast::http::response_parser<beast::http::string_body> parser;
  parser.header_limit(kAnswerHeaderBytesMax);
  parser.body_limit(request.answer_bytes_max);
  co_await beast::http::async_read(stream, buffer, parser, Into(ec));
  if (ec) co_return answer;
  answer.status = static_cast<int>(parser.get().result_int());
  answer.body = std::move(parser.get().body());
  co_return answer;
}

absl::Status Refusal(const FetchRequest& request, const ErrorCode& ec, bool late) {
  const std::string who = request.url.authority();
  if (late) {
    return absl::DeadlineExceededError(fmt::format("{} did not answer within {} ms", who,
                                                   request.timeout / absl::Milliseconds(1)));
  }
  if (ec == asio::error::operation_aborted) return absl::CancelledError("cancelled");
  if (ec == beast::http::error::body_limit) {
    return absl::ResourceExhaustedError(
        fmt::format("{} answered with more than {} bytes", who, request.answer_bytes_max));
  }
  // What ends in the middle of an answer is a broken connection, not another language.
  if (ec == beast::http::error::end_of_stream || ec == beast::http::error::partial_message) {
    return absl::UnavailableError(fmt::format("{} closed the connection without an answer", who));
  }
  if (ec.category() == beast::http::make_error_code(beast::http::error::bad_version).category()) {
    return absl::DataLossError(
        fmt::format("{} answered with what is no HTTP: {}", who, ec.message()));
  }
  if (ec.category() == asio::error::get_ssl_category()) {
    return absl::UnauthenticatedError(fmt::format("TLS with {}: {}", who, ec.message()));
  }
  return absl::UnavailableError(fmt::format("{}: {}", who, ec.message()));
}

absl::Status Trust(const FetchRequest& request, asio::ssl::context* tls) {
  ErrorCode ec;
  if (request.ca_file.empty()) {
    tls->set_default_verify_paths(ec);
  } else {
    tls->load_verify_file(request.ca_file, ec);
  }
  if (!ec) return absl::OkStatus();
  return absl::UnauthenticatedError(
      fmt::format("cannot use the certificates of {}: {}",
                  request.ca_file.empty() ? "the system" : request.ca_file, ec.message()));
}

}  // namespace

asio::awaitable<absl::StatusOr<FetchAnswer>> Fetch(const FetchRequest& request) {
  asio::any_io_executor executor = co_await asio::this_coro::executor;
  tcp::resolver resolver(executor);
  tcp::socket socket(executor);
  Deadline deadline(executor, request.timeout, [&] {
    ErrorCode ignored;
    resolver.cancel();
    socket.close(ignored);
  });
  ErrorCode ec;
  auto refused = [&] { return Refusal(request, ec, deadline.rang()); };

  auto places =
      co_await resolver.async_resolve(request.url.host, std::to_string(request.url.port), Into(ec));
  if (ec || deadline.rang()) co_return refused();
  ec = asio::error::host_not_found;
  for (const auto& place : places) {
    ErrorCode ignored;
    socket.close(ignored);
    co_await socket.async_connect(place.endpoint(), Into(ec));
    if (!ec || deadline.rang() || ec == asio::error::operation_aborted) break;
  }
  if (ec || deadline.rang()) co_return refused();
  FetchAnswer answer;
  if (request.url.tls) {
    asio::ssl::context tls(asio::ssl::context::tls_client);
    if (absl::Status trust = Trust(request, &tls); !trust.ok()) co_return trust;
    asio::ssl::stream<tcp::socket&> stream(socket, tls);
    stream.set_verify_mode(asio::ssl::verify_peer);
    stream.set_verify_callback(asio::ssl::host_name_verification(request.url.host));
    SSL_set_tlsext_host_name(stream.native_handle(), request.url.host.c_str());
    co_await stream.async_handshake(asio::ssl::stream_base::client, Into(ec));
    if (!ec) answer = co_await Exchange(stream, request, ec);
  } else {
    answer = co_await Exchange(socket, request, ec);
  }
  if (ec) co_return refused();
  co_return answer;
}

}  // namespace reprise::http
