// One connection of the HTTP port: reads requests one after the other, checks them, calls their
// handlers, sends the answers. Everything of a session runs on its strand.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>

#include "http/router.h"
#include "http/server.h"

namespace boost::asio::ssl {
class context;
}

namespace reprise::http {

// What all sessions of a server share; outlives them.
struct SessionHost {
  const Router* router = nullptr;
  Limits limits;
  boost::asio::ssl::context* tls = nullptr;  // nullptr: plain
  std::atomic<size_t> buffered{0};           // bytes of bodies held whole
  std::atomic<bool> stopping{false};
};

class Session {
 public:
  virtual ~Session() = default;
  // Serves the connection to its end.
  virtual boost::asio::awaitable<void> Run() = 0;
  // On the session's strand: an idle connection is closed, one that serves ends after its answer.
  virtual void EndWhenIdle() = 0;
  // On the session's strand: closes at once.
  virtual void Close() = 0;
  virtual boost::asio::any_io_executor executor() = 0;
};

// `socket`'s executor is the session's strand.
std::shared_ptr<Session> MakeSession(SessionHost* host, boost::asio::ip::tcp::socket socket);

}  // namespace reprise::http
