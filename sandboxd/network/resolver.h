// The DNS of a sandbox, on port 53 of every address: names that the policy does not have do not
// exist, those that it has are asked of the host's resolver, and only IPv4 addresses that may be
// reached are handed on. Other records are answered as empty, so that they carry nothing in or out.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>

#include <string>

#include "sandboxd/network/guard.h"
#include "sandboxd/network/inside.h"

namespace reprise::sandboxd::network {

class Resolver {
 public:
  // `upstream`: the resolver that is asked, over UDP and TCP. All outlive this.
  Resolver(boost::asio::io_context* io, Inside* inside, Guard* guard, Endpoint upstream)
      : io_(io), inside_(inside), guard_(guard), upstream_(upstream) {}
  // Serves for as long as the context runs.
  void Start();

 private:
  boost::asio::awaitable<void> ServeUdp();
  boost::asio::awaitable<void> AcceptTcp();
  boost::asio::awaitable<void> ServeTcp(boost::asio::ip::tcp::socket client);
  // The answer to one message; "" when it deserves none.
  boost::asio::awaitable<std::string> Answer(std::string message);
  boost::asio::awaitable<DnsAnswer> Ask(std::string name);
  boost::asio::awaitable<DnsAnswer> AskTcp(std::string name);

  boost::asio::io_context* const io_;
  Inside* const inside_;
  Guard* const guard_;
  const Endpoint upstream_;
  size_t busy_ = 0;  // queries and connections under way
};

}  // namespace reprise::sandboxd::network
