// The byte stream under an HTTP connection: TCP, or TLS over it, with a deadline for what it does.
// One virtual seam, so that everything above is compiled once.
#pragma once

#include <memory>
#include <string_view>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/system/error_code.hpp>

#include "absl/time/time.h"

namespace boost::asio::ssl {
class context;
}

namespace reprise::http {

class Transport {
 public:
  using ErrorCode = boost::system::error_code;
  virtual ~Transport() = default;
  virtual boost::asio::any_io_executor executor() = 0;
  // Operations end with a timeout (IsTimeout) once this has passed.
  virtual void ExpireAfter(absl::Duration after) = 0;
  virtual boost::asio::awaitable<void> Handshake(ErrorCode& ec) = 0;
  // Some bytes; 0 with an error.
  virtual boost::asio::awaitable<size_t> Read(boost::asio::mutable_buffer to, ErrorCode& ec) = 0;
  // All bytes, or an error.
  virtual boost::asio::awaitable<void> Write(std::string_view data, ErrorCode& ec) = 0;
  // Sends no more; reads go on, below TLS.
  virtual void EndSending() = 0;
  virtual boost::asio::awaitable<size_t> Drop(ErrorCode& ec) = 0;
  virtual void Close() = 0;
  // Whether the peer has closed its end of the connection, whatever of it is still unread.
  virtual bool PeerClosed() = 0;
};

bool IsTimeout(const Transport::ErrorCode& ec);

// `tls` may be null: plain TCP. `socket`'s executor is the strand of all its operations.
std::unique_ptr<Transport> MakeTransport(boost::asio::ip::tcp::socket socket,
                                         boost::asio::ssl::context* tls);

}  // namespace reprise::http
