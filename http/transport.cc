#include "http/transport.h"

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include <boost/asio/error.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

namespace reprise::http {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

constexpr size_t kDropBytes = 64u << 10;

// Cancels what the socket does when the time is over. Unlike a stream that closes itself, the
// connection can still be told why.
class Alarm {
 public:
  explicit Alarm(tcp::socket* socket)
      : timer_(socket->get_executor()), state_(std::make_shared<State>(State{socket, false})) {}
  ~Alarm() { state_->socket = nullptr; }
  Alarm(const Alarm&) = delete;

  void ExpireAfter(absl::Duration after) {
    state_->rang = false;
    const int64_t ms = absl::ToInt64Milliseconds(std::min(after, absl::Hours(24)));
    timer_.expires_after(std::chrono::milliseconds(ms));
    // The state outlives this: a handler that is queued already may run after it.
    timer_.async_wait([state = state_, due = timer_.expiry()](const Transport::ErrorCode& ec) {
      if (ec || state->socket == nullptr || std::chrono::steady_clock::now() < due) return;
      state->rang = true;
      Transport::ErrorCode ignored;
      state->socket->cancel(ignored);
    });
  }
  void Off() { timer_.cancel(); }
  bool rang() const { return state_->rang; }

 private:
  struct State {
    tcp::socket* socket;
    bool rang;
  };
  asio::steady_timer timer_;
  const std::shared_ptr<State> state_;
};

template <typename Stream>
class TransportImpl final : public Transport {
 public:
  static constexpr bool kTls = !std::is_same_v<Stream, tcp::socket>;

  template <typename... Args>
  explicit TransportImpl(Args&&... args) : stream_(std::forward<Args>(args)...), alarm_(&Socket()) {
    ErrorCode ignored;
    Socket().set_option(tcp::no_delay(true), ignored);
  }

  asio::any_io_executor executor() override { return stream_.get_executor(); }
  void ExpireAfter(absl::Duration after) override { alarm_.ExpireAfter(after); }
  asio::awaitable<void> Handshake(ErrorCode& ec) override {
    if constexpr (kTls) co_await stream_.async_handshake(asio::ssl::stream_base::server, Into(ec));
    Judge(ec);
    co_return;
  }
  asio::awaitable<size_t> Read(asio::mutable_buffer to, ErrorCode& ec) override {
    const size_t count = co_await stream_.async_read_some(to, Into(ec));
    Judge(ec);
    co_return count;
  }
  asio::awaitable<void> Write(std::string_view data, ErrorCode& ec) override {
    co_await asio::async_write(stream_, asio::buffer(data.data(), data.size()), Into(ec));
    Judge(ec);
  }
  void EndSending() override {
    ErrorCode ignored;
    Socket().shutdown(tcp::socket::shutdown_send, ignored);
  }
  asio::awaitable<size_t> Drop(ErrorCode& ec) override {
    std::string dropped(kDropBytes, '\0');
    const size_t count = co_await Socket().async_read_some(asio::buffer(dropped), Into(ec));
    Judge(ec);
    co_return count;
  }
  void Close() override {
    ErrorCode ignored;
    alarm_.Off();
    Socket().close(ignored);
  }
  bool PeerClosed() override {
    if (!Socket().is_open()) return true;
    pollfd fd{};
    fd.fd = Socket().native_handle();
    fd.events = POLLRDHUP;
    return ::poll(&fd, 1, 0) > 0 && (fd.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
  }

 private:
  static auto Into(ErrorCode& ec) { return asio::redirect_error(asio::use_awaitable, ec); }
  void Judge(ErrorCode& ec) {
    if (ec == asio::error::operation_aborted && alarm_.rang()) ec = asio::error::timed_out;
  }
  tcp::socket& Socket() {
    if constexpr (kTls) {
      return stream_.next_layer();
    } else {
      return stream_;
    }
  }

  Stream stream_;
  Alarm alarm_;
};

}  // namespace

bool IsTimeout(const Transport::ErrorCode& ec) { return ec == asio::error::timed_out; }

std::unique_ptr<Transport> MakeTransport(tcp::socket socket, asio::ssl::context* tls) {
  if (tls == nullptr) return std::make_unique<TransportImpl<tcp::socket>>(std::move(socket));
  return std::make_unique<TransportImpl<asio::ssl::stream<tcp::socket>>>(std::move(socket), *tls);
}

}  // namespace reprise::http
