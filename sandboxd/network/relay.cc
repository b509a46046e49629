#include "sandboxd/network/relay.h"

#include <arpa/inet.h>
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <chrono>

#include "absl/cleanup/cleanup.h"
#include "sandboxd/network/accept_pause.h"

namespace reprise::sandboxd::network {
namespace {

namespace asio = boost::asio;
using asio::experimental::awaitable_operators::operator&&;
using asio::ip::tcp;
using asio::ip::udp;
constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

constexpr auto kConnectTime = std::chrono::seconds(30);
constexpr auto kFlowIdleTime = std::chrono::seconds(60);
constexpr size_t kPumpBytes = 32 << 10;

template <typename Protocol>
typename Protocol::endpoint ToAsio(const Endpoint& endpoint) {
  return {asio::ip::address_v4(endpoint.address), endpoint.port};
}

}  // namespace

void Relay::Connection::Cut() {
  boost::system::error_code ignored;
  if (program.is_open()) Reset(program.native_handle());
  if (outside.is_open()) Reset(outside.native_handle());
  program.close(ignored);
  outside.close(ignored);
}

void Relay::Flow::Cut() {
  boost::system::error_code ignored;
  program.close(ignored);
  outside.close(ignored);
  idle.cancel();
}

void Relay::Start() {
  asio::co_spawn(*io_, Accept(), asio::detached);
  asio::co_spawn(*io_, ServeUdp(), asio::detached);
}

void Relay::Recheck() {
  for (const auto& connection : connections_) {
    if (!connection->program.is_open() ||
        guard_->Still(connection->to, Protocol::kTcp, connection->names)) {
      continue;
    }
    ++guard_->counters().cut;
    connection->Cut();
  }
  for (const auto& [key, flow] : flows_) {
    if (!flow->program.is_open() || guard_->Still(flow->to, Protocol::kUdp, flow->names)) continue;
    ++guard_->counters().cut;
    flow->Cut();
  }
}

// The local address of an accepted connection is what the program called.
asio::awaitable<void> Relay::Accept() {
  tcp::acceptor acceptor(*io_, tcp::v4(), dup(inside_->tcp()));
  while (true) {
    auto [error, program] = co_await acceptor.async_accept(kAwait);
    if (error == asio::error::operation_aborted) co_return;
    if (error) {
      co_await PauseAccepting(io_);
      continue;
    }
    boost::system::error_code gone;
    const tcp::endpoint called = program.local_endpoint(gone);
    if (gone) continue;
    const Endpoint to{called.address().to_v4().to_uint(), called.port()};
    auto names = guard_->Judge(to, Protocol::kTcp);
    if (!names.has_value() || connections_.size() >= kConnectionsMax) {
      ++guard_->counters().refused;
      Reset(program.native_handle());
      continue;
    }
    ++guard_->counters().allowed;
    auto connection = std::make_shared<Connection>(*io_, to);
    connection->names = *std::move(names);
    connection->program = std::move(program);
    connections_.push_back(connection);
    asio::co_spawn(*io_, Serve(std::move(connection)), asio::detached);
  }
}

asio::awaitable<void> Relay::Serve(std::shared_ptr<Connection> connection) {
  const absl::Cleanup gone = [&] {
    connection->Cut();
    connections_.remove(connection);
  };
  boost::system::error_code failed;
  connection->outside.open(tcp::v4(), failed);
  if (failed) co_return;
  asio::steady_timer limit(*io_, kConnectTime);
  limit.async_wait([connection](const boost::system::error_code& error) {
    if (!error) connection->Cut();
  });
  auto [refused] = co_await connection->outside.async_connect(ToAsio<tcp>(connection->to), kAwait);
  limit.cancel();
  if (refused || !connection->program.is_open()) co_return;
  for (tcp::socket* socket : {&connection->program, &connection->outside}) {
    socket->set_option(tcp::no_delay(true), failed);
    socket->set_option(tcp::socket::keep_alive(true), failed);
  }
  co_await (Pump(connection, connection->program, connection->outside) &&
            Pump(connection, connection->outside, connection->program));
  boost::system::error_code ignored;
  connection->program.close(ignored);  // both ends were seen: no reset
  connection->outside.close(ignored);
}

// One direction, to its end; the end is passed on. A broken half breaks the other.
asio::awaitable<void> Relay::Pump(std::shared_ptr<Connection> connection, tcp::socket& from,
                                  tcp::socket& to) {
  std::vector<char> buffer(kPumpBytes);
  while (true) {
    auto [error, count] = co_await from.async_read_some(asio::buffer(buffer), kAwait);
    if (error == asio::error::eof) break;
    if (error) co_return connection->Cut();
    auto [unsent, sent] = co_await asio::async_write(to, asio::buffer(buffer, count), kAwait);
    if (unsent) co_return connection->Cut();
  }
  boost::system::error_code ignored;
  to.shutdown(tcp::socket::shutdown_send, ignored);
}

asio::awaitable<void> Relay::ServeUdp() {
  udp::socket socket(*io_, udp::v4(), dup(inside_->udp()));
  while (true) {
    auto [error] = co_await socket.async_wait(udp::socket::wait_read, kAwait);
    if (error) co_return;
    while (auto datagram = ReceiveDatagram(inside_->udp())) OpenFlow(*datagram);
  }
}

// The first datagram of a flow, and those that came before its own socket was there.
void Relay::OpenFlow(const Datagram& first) {
  const FlowKey key{first.from, first.to};
  boost::system::error_code failed;
  if (const auto found = flows_.find(key); found != flows_.end()) {
    found->second->outside.send(asio::buffer(first.data), 0, failed);
    return;
  }
  auto names = guard_->Judge(first.to, Protocol::kUdp);
  if (!names.has_value() || flows_.size() >= kFlowsMax) {
    ++guard_->counters().refused;
    return;
  }
  absl::StatusOr<base::UniqueFd> answerer = inside_->Answerer(first.to, first.from);
  if (!answerer.ok()) return;
  auto flow = std::make_shared<Flow>(*io_, first.to);
  flow->names = *std::move(names);
  flow->program.assign(udp::v4(), answerer->Release(), failed);
  if (!failed) flow->outside.open(udp::v4(), failed);
  if (!failed) flow->outside.non_blocking(true, failed);
  if (!failed) flow->outside.connect(ToAsio<udp>(first.to), failed);
  if (failed) return;
  ++guard_->counters().allowed;
  flow->outside.send(asio::buffer(first.data), 0, failed);
  flows_.emplace(key, flow);
  asio::co_spawn(*io_, ServeFlow(std::move(flow), key), asio::detached);
}

asio::awaitable<void> Relay::ServeFlow(std::shared_ptr<Flow> flow, FlowKey key) {
  const absl::Cleanup gone = [&] { flows_.erase(key); };
  asio::co_spawn(
      *io_,
      [flow]() -> asio::awaitable<void> {
        flow->idle.expires_after(kFlowIdleTime);
        while (flow->program.is_open()) {
          co_await flow->idle.async_wait(kAwait);
          if (flow->idle.expiry() <= std::chrono::steady_clock::now()) flow->Cut();
        }
      },
      asio::detached);
  co_await (PumpFlow(flow, flow->program, flow->outside) &&
            PumpFlow(flow, flow->outside, flow->program));
}

asio::awaitable<void> Relay::PumpFlow(std::shared_ptr<Flow> flow, udp::socket& from,
                                      udp::socket& to) {
  std::vector<char> buffer(kDatagramBytesMax);
  while (from.is_open()) {
    auto [error, count] = co_await from.async_receive(asio::buffer(buffer), kAwait);
    if (error == asio::error::operation_aborted || !from.is_open()) co_return;
    if (error) continue;  // the peer's port is closed: later datagrams may fare better
    flow->idle.expires_after(kFlowIdleTime);
    co_await to.async_send(asio::buffer(buffer, count), kAwait);
  }
}

}  // namespace reprise::sandboxd::network
