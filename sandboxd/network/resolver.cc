#include "sandboxd/network/resolver.h"

#include <sys/random.h>
#include <unistd.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/udp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <memory>

#include "absl/cleanup/cleanup.h"
#include "sandboxd/network/accept_pause.h"
#include "sandboxd/network/datagram.h"
#include "sandboxd/network/dns.h"

namespace reprise::sandboxd::network {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using asio::ip::udp;
constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

constexpr size_t kBusyMax = 128;
constexpr int kTries = 3;
constexpr auto kTryTime = std::chrono::seconds(2);
constexpr auto kTcpTime = std::chrono::seconds(10);
constexpr size_t kLengthBytes = 2;  // before each message on a TCP connection

uint16_t RandomId() {
  uint16_t id = 0;
  (void)!getrandom(&id, sizeof(id), 0);
  return id;
}

// Closes a socket when the time is over, unless it went first.
template <typename Socket>
class Deadline {
 public:
  Deadline(Socket& socket, std::chrono::seconds time) : timer_(socket.get_executor()) {
    timer_.expires_after(time);
    timer_.async_wait(
        [alive = std::weak_ptr<Socket*>(target_ = std::make_shared<Socket*>(&socket))](
            const boost::system::error_code& error) {
          boost::system::error_code ignored;
          if (const auto target = alive.lock(); target != nullptr && !error)
            (*target)->close(ignored);
        });
  }

 private:
  std::shared_ptr<Socket*> target_;
  asio::steady_timer timer_;
};

std::string Framed(const std::string& message) {
  std::string framed;
  framed.push_back(static_cast<char>(message.size() >> 8));
  framed.push_back(static_cast<char>(message.size() & 255));
  return framed + message;
}

// One message of a TCP connection, "" at its end.
asio::awaitable<std::string> ReadFramed(tcp::socket& socket) {
  std::array<unsigned char, kLengthBytes> length;
  auto [error, count] = co_await asio::async_read(socket, asio::buffer(length), kAwait);
  const size_t bytes = error ? 0 : static_cast<size_t>(length[0]) << 8 | length[1];
  if (bytes == 0 || bytes > kDnsMessageBytesMax) co_return "";
  std::string message(bytes, '\0');
  auto [cut, got] = co_await asio::async_read(socket, asio::buffer(message), kAwait);
  co_return cut ? "" : message;
}

}  // namespace

void Resolver::Start() {
  asio::co_spawn(*io_, ServeUdp(), asio::detached);
  asio::co_spawn(*io_, AcceptTcp(), asio::detached);
}

asio::awaitable<void> Resolver::ServeUdp() {
  udp::socket socket(*io_, udp::v4(), dup(inside_->dns_udp()));
  while (true) {
    auto [error] = co_await socket.async_wait(udp::socket::wait_read, kAwait);
    if (error) co_return;
    while (auto datagram = ReceiveDatagram(inside_->dns_udp())) {
      if (busy_ >= kBusyMax) continue;  // as if it were lost: it is asked again
      ++busy_;
      asio::co_spawn(
          *io_,
          [this, query = *std::move(datagram)]() -> asio::awaitable<void> {
            const absl::Cleanup done = [this] { --busy_; };
            const std::string answer = co_await Answer(query.data);
            if (!answer.empty()) SendDatagram(inside_->dns_udp(), query.to, query.from, answer);
          },
          asio::detached);
    }
  }
}

asio::awaitable<void> Resolver::AcceptTcp() {
  tcp::acceptor acceptor(*io_, tcp::v4(), dup(inside_->dns_tcp()));
  while (true) {
    auto [error, client] = co_await acceptor.async_accept(kAwait);
    if (error == asio::error::operation_aborted) co_return;
    if (error) co_await PauseAccepting(io_);
    if (error || busy_ >= kBusyMax) continue;
    ++busy_;
    asio::co_spawn(*io_, ServeTcp(std::move(client)), asio::detached);
  }
}

asio::awaitable<void> Resolver::ServeTcp(tcp::socket client) {
  const absl::Cleanup done = [this] { --busy_; };
  while (true) {
    const Deadline deadline(client, kTcpTime);
    const std::string query = co_await ReadFramed(client);
    if (query.empty()) co_return;
    const std::string answer = co_await Answer(query);
    if (answer.empty()) co_return;
    auto [error, count] = co_await asio::async_write(client, asio::buffer(Framed(answer)), kAwait);
    if (error) co_return;
  }
}

asio::awaitable<std::string> Resolver::Answer(std::string message) {
  const absl::StatusOr<DnsQuestion> question = ReadDnsQuestion(message);
  if (!question.ok()) co_return "";
  DnsAnswer answer;
  if (question->name.empty() || !guard_->Resolves(question->name)) {
    answer.code = DnsCode::kNoName;
    ++guard_->counters().names_refused;
  } else if (!question->asks_address) {
    answer.code = DnsCode::kOk;
  } else {
    answer = co_await Ask(question->name);
    const bool had_addresses = !answer.addresses.empty();
    // The policy may have changed meanwhile.
    if (!guard_->Resolves(question->name)) answer.addresses.clear();
    guard_->Learn(question->name, &answer);
    if (!answer.addresses.empty()) {
      ++guard_->counters().names_answered;
    } else if (had_addresses) {
      answer.code = DnsCode::kNoName;
      ++guard_->counters().names_refused;
    }
  }
  co_return WriteDnsAnswer(*question, answer);
}

asio::awaitable<DnsAnswer> Resolver::Ask(std::string name) {
  for (int tries = 0; tries < kTries; ++tries) {
    udp::socket socket(*io_);
    boost::system::error_code failed;
    socket.open(udp::v4(), failed);
    if (!failed)
      socket.connect(udp::endpoint(asio::ip::address_v4(upstream_.address), upstream_.port),
                     failed);
    if (failed) break;
    const Deadline deadline(socket, kTryTime);
    const uint16_t id = RandomId();
    const std::string query = WriteDnsQuery(id, name);
    auto [unsent, sent] = co_await socket.async_send(asio::buffer(query), kAwait);
    if (unsent) continue;
    std::string buffer(kDnsMessageBytesMax, '\0');
    while (true) {
      auto [error, count] = co_await socket.async_receive(asio::buffer(buffer), kAwait);
      if (error) break;
      const absl::StatusOr<DnsAnswer> answer =
          ReadDnsAnswer(std::string_view(buffer).substr(0, count), id, name);
      if (!answer.ok()) continue;  // nobody's answer to this query
      if (answer->truncated) co_return co_await AskTcp(name);
      co_return *answer;
    }
  }
  co_return DnsAnswer();
}

asio::awaitable<DnsAnswer> Resolver::AskTcp(std::string name) {
  tcp::socket socket(*io_);
  boost::system::error_code failed;
  socket.open(tcp::v4(), failed);
  if (failed) co_return DnsAnswer();
  const Deadline deadline(socket, kTcpTime);
  auto [refused] = co_await socket.async_connect(
      tcp::endpoint(asio::ip::address_v4(upstream_.address), upstream_.port), kAwait);
  if (refused) co_return DnsAnswer();
  const uint16_t id = RandomId();
  const std::string query = Framed(WriteDnsQuery(id, name));
  auto [error, count] = co_await asio::async_write(socket, asio::buffer(query), kAwait);
  if (error) co_return DnsAnswer();
  const absl::StatusOr<DnsAnswer> answer = ReadDnsAnswer(co_await ReadFramed(socket), id, name);
  co_return answer.ok() ? *answer : DnsAnswer();
}

}  // namespace reprise::sandboxd::network
