#include "http/session.h"

#include <chrono>
#include <future>
#include <optional>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/use_future.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>

#include "absl/strings/ascii.h"
#include "http/target.h"
#include "http/transport.h"

namespace reprise::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace bhttp = boost::beast::http;
using ErrorCode = Transport::ErrorCode;

constexpr size_t kReadBytes = 64u << 10;
constexpr size_t kHeadersMax = 100;
constexpr size_t kLingerBytesMax = 4u << 20;  // of a refused body, read and dropped
constexpr absl::Duration kLingerTime = absl::Seconds(2);
constexpr absl::Duration kClientCheckEvery = absl::Milliseconds(200);  // while a handler works
constexpr size_t kWriteRateMin = 64u << 10;  // bytes a second of a large response

std::chrono::milliseconds Millis(absl::Duration d) {
  return std::chrono::milliseconds(absl::ToInt64Milliseconds(d));
}

// Counts the bytes of one whole body against the server's total while it lives.
class Buffered {
 public:
  explicit Buffered(SessionHost* host) : host_(host) {}
  ~Buffered() { host_->buffered -= bytes_; }
  Buffered(const Buffered&) = delete;
  bool Add(size_t bytes) {
    bytes_ += bytes;
    return (host_->buffered += bytes) <= host_->limits.buffered_bytes;
  }

 private:
  SessionHost* const host_;
  size_t bytes_ = 0;
};

class SessionImpl final : public Session, public std::enable_shared_from_this<SessionImpl> {
 public:
  SessionImpl(SessionHost* host, std::unique_ptr<Transport> transport)
      : host_(host),
        transport_(std::move(transport)),
        buffer_(host->limits.header_bytes + 2 * kReadBytes) {}

  asio::any_io_executor executor() override { return transport_->executor(); }
  void EndWhenIdle() override {
    if (idle_) Close();
  }
  void Close() override {
    transport_->Close();
    closed_ = true;
    if (waiting_ != nullptr) waiting_->cancel();
  }

  asio::awaitable<void> Run() override {
    ErrorCode ec;
    transport_->ExpireAfter(host_->limits.handshake_time);
    co_await transport_->Handshake(ec);
    while (!ec && !host_->stopping && co_await ServeOne()) {
    }
    if (linger_) co_await Linger();
    Close();
  }

 private:
  // A body that a handler pulls from a thread of its own.
  class Reader final : public BodyReader {
   public:
    explicit Reader(std::shared_ptr<SessionImpl> session) : session_(std::move(session)) {}
    absl::StatusOr<std::string> Read() override {
      return asio::co_spawn(session_->executor(), session_->ReadPiece(kReadBytes), asio::use_future)
          .get();
    }

   private:
    const std::shared_ptr<SessionImpl> session_;
  };

  static auto Into(ErrorCode& ec) { return asio::redirect_error(asio::use_awaitable, ec); }

  // Adds what comes next to the buffer.
  asio::awaitable<void> Fill(ErrorCode& ec) {
    if (buffer_.max_size() - buffer_.size() < kReadBytes) {
      ec = bhttp::error::buffer_overflow;  // a chunk's header line without an end
      co_return;
    }
    const size_t count = co_await transport_->Read(buffer_.prepare(kReadBytes), ec);
    buffer_.commit(count);
  }

  // Reads the header, and nothing of the body.
  asio::awaitable<void> ReadHeader(ErrorCode& ec) {
    while (true) {
      buffer_.consume(parser_->put(buffer_.data(), ec));
      if (parser_->is_header_done() || (ec && ec != bhttp::error::need_more)) co_return;
      ec = {};
      co_await Fill(ec);
      if (ec) co_return;
    }
  }

  // Reads one request and answers it. False when the connection ends.
  asio::awaitable<bool> ServeOne() {
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(host_->limits.header_bytes));
    parser_->body_limit(boost::none);  // the route's limit is counted in ReadPiece
    ErrorCode ec;
    if (buffer_.size() == 0) {
      idle_ = true;
      transport_->ExpireAfter(host_->limits.idle_time);
      co_await Fill(ec);
      idle_ = false;
      if (ec) co_return false;
    }
    transport_->ExpireAfter(host_->limits.header_time);
    co_await ReadHeader(ec);
    if (ec) co_return co_await RefuseHeader(ec);
    auto request = std::make_shared<Request>();
    std::optional<Response> refused = Take(request.get());
    if (refused.has_value()) co_return co_await Refuse(*std::move(refused), /*framed=*/false);

    bool path_known = false;
    const Route* route =
        host_->router->Find(request->method, request->segments, &request->params, &path_known);
    if (route == nullptr) {
      Response unknown = ErrorResponse(404, fmt::format("{} is not a path here", request->path));
      if (path_known) {
        unknown =
            ErrorResponse(405, fmt::format("{} has no method {}", request->path, request->method));
      }
      co_return co_await Refuse(std::move(unknown), /*framed=*/true);
    }
    if (route->guard != nullptr) refused = route->guard(*request);
    if (refused.has_value()) co_return co_await Refuse(*std::move(refused), /*framed=*/true);
    body_left_ = route->body_max;
    const auto length = parser_->content_length();
    if (length.has_value() && *length > route->body_max) {
      Response long_body = TooLong(route->body_max);
      co_return co_await Refuse(std::move(long_body), /*framed=*/false);
    }
    if (!co_await Continue(*request)) co_return false;

    Buffered buffered(host_);
    if (route->in_pieces) {
      request->reader = std::make_shared<Reader>(shared_from_this());
    } else {
      refused = co_await ReadWhole(request.get(), &buffered);
      if (refused.has_value()) co_return co_await Refuse(*std::move(refused), /*framed=*/false);
    }
    const RequestPtr whole = std::move(request);
    transport_->ExpireAfter(absl::InfiniteDuration());
    Response response = co_await Ask(route->handler, whole);
    const bool keep = parser_->is_done() && parser_->get().keep_alive() && !host_->stopping;
    linger_ = !parser_->is_done();
    const bool sent = co_await Send(std::move(response), keep);
    co_return sent&& keep;
  }

  // Fills in `request` from the header; a response refuses it. Everything that two readers could
  // take for different messages is refused.
  std::optional<Response> Take(Request* request) {
    const auto& message = parser_->get();
    if (message.version() != 11 && message.version() != 10)
      return ErrorResponse(400, "only HTTP/1.1 and HTTP/1.0 are spoken here");
    const size_t hosts = message.count(bhttp::field::host);
    if (hosts > 1 || (hosts == 0 && message.version() == 11))
      return ErrorResponse(400, "the request must have one Host header");
    const size_t encodings = message.count(bhttp::field::transfer_encoding);
    const size_t lengths = message.count(bhttp::field::content_length);
    if (encodings + lengths > 1) {
      return ErrorResponse(400,
                           "the request has more than one of Content-Length and Transfer-Encoding");
    }
    const auto length = message[bhttp::field::content_length];
    if (lengths == 1 && length.find_first_not_of("0123456789") != length.npos)
      return ErrorResponse(400, "the Content-Length is not a number");
    if (encodings == 1) {
      const auto value = message[bhttp::field::transfer_encoding];
      if (message.version() != 11 ||
          !EqualsIgnoreCase(std::string_view(value.data(), value.size()), "chunked"))
        return ErrorResponse(400, "the only transfer encoding is chunked, in HTTP/1.1");
    }
    absl::StatusOr<Target> target =
        ParseTarget(std::string_view(message.target().data(), message.target().size()));
    if (!target.ok()) return ErrorResponse(target.status());
    request->method = std::string(message.method_string());
    request->path = std::move(target->path);
    request->segments = std::move(target->segments);
    request->query = std::move(target->query);
    for (const auto& field : message) {
      if (request->headers.size() >= kHeadersMax)
        return ErrorResponse(431, fmt::format("more than {} headers", kHeadersMax));
      request->headers.push_back({absl::AsciiStrToLower(absl::string_view(
                                      field.name_string().data(), field.name_string().size())),
                                  std::string(field.value())});
    }
    return std::nullopt;
  }

  asio::awaitable<bool> Continue(const Request& request) {
    if (!EqualsIgnoreCase(request.header("expect"), "100-continue") || parser_->is_done())
      co_return true;
    constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    ErrorCode ec;
    transport_->ExpireAfter(host_->limits.write_time);
    co_await transport_->Write(kContinue, ec);
    co_return !ec;
  }

  static Response TooLong(size_t limit) {
    return ErrorResponse(413,
                         fmt::format("the body is longer than the {} bytes allowed here", limit));
  }

  // At most `most` bytes of the body, "" at its end.
  asio::awaitable<absl::StatusOr<std::string>> ReadPiece(size_t most) {
    transport_->ExpireAfter(host_->limits.piece_time);
    while (!parser_->is_done()) {
      std::string piece(most, '\0');
      parser_->get().body().data = piece.data();
      parser_->get().body().size = piece.size();
      ErrorCode ec;
      const size_t used = buffer_.size() > 0 ? parser_->put(buffer_.data(), ec) : 0;
      buffer_.consume(used);
      piece.resize(piece.size() - parser_->get().body().size);
      if (ec && ec != bhttp::error::need_buffer && ec != bhttp::error::need_more)
        co_return absl::InvalidArgumentError(fmt::format("malformed body: {}", ec.message()));
      if (piece.size() > body_left_)
        co_return absl::ResourceExhaustedError("the body is longer than allowed here");
      body_left_ -= piece.size();
      if (!piece.empty()) co_return piece;
      if (used > 0) continue;  // one step of the parser: a chunk's header, say
      ec = {};
      co_await Fill(ec);
      if (IsTimeout(ec)) co_return absl::DeadlineExceededError("the body came too slowly");
      if (ec == bhttp::error::buffer_overflow)
        co_return absl::InvalidArgumentError("malformed body: a chunk's header is too long");
      if (ec) co_return absl::CancelledError("the client went away");
    }
    co_return std::string();
  }

  asio::awaitable<std::optional<Response>> ReadWhole(Request* request, Buffered* buffered) {
    const size_t limit = body_left_;
    const auto deadline = std::chrono::steady_clock::now() + Millis(host_->limits.body_time);
    while (true) {
      if (std::chrono::steady_clock::now() > deadline)
        co_return ErrorResponse(408, "the body came too slowly");
      absl::StatusOr<std::string> piece = co_await ReadPiece(kReadBytes);
      if (absl::IsResourceExhausted(piece.status())) co_return TooLong(limit);
      if (absl::IsDeadlineExceeded(piece.status()))
        co_return ErrorResponse(408, "the body came too slowly");
      if (!piece.ok()) co_return ErrorResponse(piece.status());
      if (piece->empty()) co_return std::nullopt;
      if (!buffered->Add(piece->size()))
        co_return ErrorResponse(503, "too many large requests at one time: try again");
      request->body += *piece;
    }
  }

  // Tells a request's client object when the client closes while the handler works.
  struct Waiting {
    explicit Waiting(const asio::any_io_executor& executor) : timer(executor) {}
    asio::steady_timer timer;
    bool answered = false;
  };
  asio::awaitable<void> Watch(std::shared_ptr<Waiting> waiting, RequestPtr request) {
    while (!waiting->answered && !transport_->PeerClosed()) {
      ErrorCode ignored;
      waiting->timer.expires_after(Millis(kClientCheckEvery));
      co_await waiting->timer.async_wait(Into(ignored));
    }
    if (!waiting->answered) request->client->Gone();
  }

  // The handler's answer; it may come from any thread.
  asio::awaitable<Response> Ask(const Handler& handler, const RequestPtr& request) {
    auto waiting = std::make_shared<Waiting>(executor());
    auto start = [&](auto done) {
      auto shared = std::make_shared<decltype(done)>(std::move(done));
      handler(request, [shared, waiting, executor = executor()](Response response) {
        asio::post(executor, [shared, waiting, response = std::move(response)]() mutable {
          waiting->answered = true;
          waiting->timer.cancel();
          (*shared)(std::move(response));
        });
      });
    };
    asio::co_spawn(
        executor(),
        [self = shared_from_this(), waiting, request] { return self->Watch(waiting, request); },
        asio::detached);
    co_return co_await asio::async_initiate<const asio::use_awaitable_t<>&, void(Response)>(
        start, asio::use_awaitable);
  }

  // ---- answers

  // GCC 12 destroys temporaries of co_await expressions twice where one of two is chosen: answers
  // are made first, and moved in.
  asio::awaitable<bool> RefuseHeader(const ErrorCode& ec) {
    Response response;
    if (IsTimeout(ec)) {
      response = ErrorResponse(408, "the header came too slowly");
    } else if (ec == bhttp::error::header_limit || ec == bhttp::error::buffer_overflow) {
      response = ErrorResponse(
          431, fmt::format("the header is longer than {} bytes", host_->limits.header_bytes));
    } else if (ec.category() == bhttp::make_error_code(bhttp::error::bad_target).category()) {
      response = ErrorResponse(400, fmt::format("malformed request: {}", ec.message()));
    } else {
      co_return false;  // the client has gone
    }
    co_return co_await Refuse(std::move(response), /*framed=*/false);
  }

  // Answers. The connection goes on where the request was well `framed` and is wholly read.
  asio::awaitable<bool> Refuse(Response response, bool framed) {
    const bool keep =
        framed && parser_->is_done() && parser_->get().keep_alive() && !host_->stopping;
    linger_ = !keep;
    const bool sent = co_await Send(std::move(response), keep);
    co_return sent&& keep;
  }

  // Status line and headers, up to the empty line. `framing`: the header that says how long the
  // body is, or "".
  static std::string Head(const Response& response, std::string_view framing, bool keep) {
    std::string head = fmt::format("HTTP/1.1 {} {}\r\n", response.status, Reason(response.status));
    auto add = [&](std::string_view name, std::string_view value) {
      // A line end in a value would begin a header, or a body, of somebody else's making.
      if (value.find_first_of(std::string_view("\r\n\0", 3)) != std::string_view::npos) return;
      head += fmt::format("{}: {}\r\n", name, value);
    };
    if (!response.content_type.empty()) add("Content-Type", response.content_type);
    for (const Header& header : response.headers) add(header.name, header.value);
    if (!keep) add("Connection", "close");
    return fmt::format("{}{}\r\n", head, framing);
  }

  // False when it could not be sent whole.
  asio::awaitable<bool> Send(Response response, bool keep) {
    if (response.stream != nullptr) co_return co_await SendStream(response, keep);
    const bool bodiless = response.status == 204;
    std::string bytes =
        Head(response, bodiless ? "" : fmt::format("Content-Length: {}\r\n", response.body.size()),
             keep);
    if (!bodiless) bytes += response.body;
    ErrorCode ec;
    transport_->ExpireAfter(host_->limits.write_time +
                            absl::Seconds(static_cast<double>(bytes.size() / kWriteRateMin)));
    co_await transport_->Write(bytes, ec);
    co_return !ec;
  }

  asio::awaitable<bool> SendStream(const Response& response, bool keep) {
    const bool chunked = parser_->get().version() == 11;  // 1.0: the end of the connection ends it
    ErrorCode ec;
    transport_->ExpireAfter(host_->limits.write_time);
    const std::string head =
        Head(response, chunked ? "Transfer-Encoding: chunked\r\n" : "", keep && chunked);
    co_await transport_->Write(head, ec);
    while (!ec) {
      const BodySource::Piece piece = co_await NextPiece(response.stream, chunked, ec);
      if (ec) break;
      if (!piece.ok()) co_return false;  // cut off: the client sees that the end is missing
      if (!piece->has_value()) {
        if (chunked) co_await transport_->Write("0\r\n\r\n", ec);
        co_return !ec && chunked;
      }
      co_await WritePiece(**piece, chunked, ec);
    }
    response.stream->Cancel();
    co_return false;
  }

  asio::awaitable<void> WritePiece(const std::string& piece, bool chunked, ErrorCode& ec) {
    transport_->ExpireAfter(host_->limits.write_time);
    if (chunked) {
      const std::string chunk = fmt::format("{:x}\r\n{}\r\n", piece.size(), piece);
      co_await transport_->Write(chunk, ec);
    } else {
      co_await transport_->Write(piece, ec);
    }
  }

  // Waits for a piece, and keeps the connection alive meanwhile. `ec`: the client has gone.
  asio::awaitable<BodySource::Piece> NextPiece(std::shared_ptr<BodySource> source, bool chunked,
                                               ErrorCode& ec) {
    struct Mailbox {
      explicit Mailbox(const asio::any_io_executor& executor) : timer(executor) {}
      std::optional<BodySource::Piece> piece;
      asio::steady_timer timer;
    };
    auto mailbox = std::make_shared<Mailbox>(executor());
    source->Next([mailbox, executor = executor()](BodySource::Piece piece) {
      asio::post(executor, [mailbox, piece = std::move(piece)]() mutable {
        mailbox->piece = std::move(piece);
        mailbox->timer.cancel();
      });
    });
    const absl::Duration every = std::min(source->keepalive_every(), absl::Hours(1));
    absl::Duration quiet = absl::ZeroDuration();
    while (!mailbox->piece.has_value()) {
      const absl::Duration wait = std::min(every - quiet, kClientCheckEvery);
      mailbox->timer.expires_after(Millis(wait));
      ErrorCode waited;
      waiting_ = &mailbox->timer;
      co_await mailbox->timer.async_wait(Into(waited));
      waiting_ = nullptr;
      if (mailbox->piece.has_value()) break;
      if (closed_) ec = asio::error::operation_aborted;
      if (!ec && !waited && transport_->PeerClosed()) ec = asio::error::connection_reset;
      if (ec) co_return std::optional<std::string>();
      if (waited) continue;
      quiet += wait;
      if (quiet < every) continue;
      quiet = absl::ZeroDuration();
      const std::string keepalive = source->KeepAlive();
      if (keepalive.empty()) continue;
      co_await WritePiece(keepalive, chunked, ec);
      if (ec) co_return std::optional<std::string>();
    }
    co_return *std::move(mailbox->piece);
  }

  // Lets the client read the answer before its unread bytes make the kernel reset the connection.
  asio::awaitable<void> Linger() {
    ErrorCode ec;
    transport_->EndSending();
    transport_->ExpireAfter(kLingerTime);
    for (size_t total = 0; !ec && total < kLingerBytesMax;) total += co_await transport_->Drop(ec);
  }

  SessionHost* const host_;
  const std::unique_ptr<Transport> transport_;
  beast::flat_buffer buffer_;
  std::optional<bhttp::request_parser<bhttp::buffer_body>> parser_;
  size_t body_left_ = 0;  // bytes that the body may still have
  bool idle_ = false;     // waits for a request
  bool linger_ = false;   // the client may still be sending
  bool closed_ = false;
  asio::steady_timer* waiting_ = nullptr;  // of a stream that waits for its next piece
};

}  // namespace

std::shared_ptr<Session> MakeSession(SessionHost* host, asio::ip::tcp::socket socket) {
  return std::make_shared<SessionImpl>(host, MakeTransport(std::move(socket), host->tls));
}

}  // namespace reprise::http
