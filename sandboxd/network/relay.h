// Carries what a sandbox sends to allowed destinations: each TCP connection and each UDP flow is
// judged once, when it begins, and again under each new policy. The outside half is an ordinary
// socket of the host's, so the sandbox needs no route, no address and no translation on the host.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/udp.hpp>
#include <boost/asio/steady_timer.hpp>

#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "sandboxd/network/datagram.h"
#include "sandboxd/network/guard.h"
#include "sandboxd/network/inside.h"

namespace reprise::sandboxd::network {

inline constexpr size_t kConnectionsMax = 512;  // TCP, of one sandbox at one time
inline constexpr size_t kFlowsMax = 256;        // UDP, of one sandbox at one time

class Relay {
 public:
  // All outlive this.
  Relay(boost::asio::io_context* io, Inside* inside, Guard* guard)
      : io_(io), inside_(inside), guard_(guard) {}
  // Serves for as long as the context runs.
  void Start();
  // Ends what the guard's policy no longer allows.
  void Recheck();

 private:
  // One that was allowed: where to, and under which names.
  struct Connection {
    Connection(boost::asio::io_context& io, Endpoint destination)
        : to(destination), program(io), outside(io) {}
    const Endpoint to;
    std::vector<std::string> names;
    boost::asio::ip::tcp::socket program, outside;
    void Cut();
  };
  struct Flow {
    Flow(boost::asio::io_context& io, Endpoint destination)
        : to(destination), program(io), outside(io), idle(io) {}
    const Endpoint to;
    std::vector<std::string> names;
    boost::asio::ip::udp::socket program, outside;
    boost::asio::steady_timer idle;
    void Cut();
  };
  using FlowKey = std::pair<Endpoint, Endpoint>;  // program, destination

  boost::asio::awaitable<void> Accept();
  boost::asio::awaitable<void> Serve(std::shared_ptr<Connection> connection);
  static boost::asio::awaitable<void> Pump(std::shared_ptr<Connection> connection,
                                           boost::asio::ip::tcp::socket& from,
                                           boost::asio::ip::tcp::socket& to);
  boost::asio::awaitable<void> ServeUdp();
  void OpenFlow(const Datagram& first);
  boost::asio::awaitable<void> ServeFlow(std::shared_ptr<Flow> flow, FlowKey key);
  static boost::asio::awaitable<void> PumpFlow(std::shared_ptr<Flow> flow,
                                               boost::asio::ip::udp::socket& from,
                                               boost::asio::ip::udp::socket& to);

  boost::asio::io_context* const io_;
  Inside* const inside_;
  Guard* const guard_;
  std::list<std::shared_ptr<Connection>> connections_;
  std::map<FlowKey, std::shared_ptr<Flow>> flows_;
};

}  // namespace reprise::sandboxd::network
