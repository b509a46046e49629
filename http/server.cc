#include "http/server.h"

#include <map>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "http/session.h"

namespace reprise::http {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr std::chrono::milliseconds kAcceptPause{100};  // after a failure to accept

class ServerImpl final : public Server {
 public:
  ServerImpl(const ServerOptions& options, Router router)
      : options_(options), router_(std::move(router)), acceptor_(asio::make_strand(io_)) {
    host_.router = &router_;
    host_.limits = options.limits;
  }
  ~ServerImpl() override { Shutdown(); }

  absl::Status Listen() {
    RETURN_IF_ERROR(LoadTls());
    const size_t colon = options_.listen.rfind(':');
    if (colon == std::string::npos || colon + 1 == options_.listen.size()) {
      return absl::InvalidArgumentError(
          fmt::format("--http {}: give HOST:PORT, for example 127.0.0.1:7080", options_.listen));
    }
    std::string name = options_.listen.substr(0, colon);
    const std::string port = options_.listen.substr(colon + 1);
    if (name.size() > 2 && name.front() == '[' && name.back() == ']')
      name = name.substr(1, name.size() - 2);
    ErrorCode ec;
    const auto found = tcp::resolver(io_).resolve(
        name, port, tcp::resolver::passive | tcp::resolver::numeric_service, ec);
    if (ec || found.empty()) {
      return absl::InvalidArgumentError(
          fmt::format("--http {}: no such address: {}", options_.listen, ec.message()));
    }
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), ec);
    if (!ec) acceptor_.set_option(tcp::acceptor::reuse_address(true), ec);
    if (!ec) acceptor_.bind(endpoint, ec);
    if (!ec) acceptor_.listen(asio::socket_base::max_listen_connections, ec);
    if (ec) {
      return absl::UnavailableError(
          fmt::format("cannot listen on {}: {}", options_.listen, ec.message()));
    }
    address_ =
        fmt::format("{}:{}", options_.listen.substr(0, colon), acceptor_.local_endpoint(ec).port());
    asio::co_spawn(acceptor_.get_executor(), Accept(), asio::detached);
    for (size_t i = 0; i < options_.io_threads; ++i) threads_.emplace_back([this] { io_.run(); });
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  void Shutdown() override {
    if (threads_.empty()) return;
    host_.stopping = true;
    asio::post(acceptor_.get_executor(), [this] {
      ErrorCode ignored;
      acceptor_.close(ignored);
    });
    ForEach([](Session* session) { session->EndWhenIdle(); });
    if (!WaitEmpty(options_.limits.stop_grace)) {
      ForEach([](Session* session) { session->Close(); });
      WaitEmpty(absl::InfiniteDuration());
    }
    work_.reset();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  absl::Status LoadTls() {
    if (options_.tls_cert.empty() != options_.tls_key.empty())
      return absl::InvalidArgumentError("TLS needs both --http-cert and --http-key");
    if (options_.tls_cert.empty()) return absl::OkStatus();
    tls_ = std::make_unique<asio::ssl::context>(asio::ssl::context::tls_server);
    ErrorCode ec;
    tls_->set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_sslv2 |
                          asio::ssl::context::no_sslv3 | asio::ssl::context::no_tlsv1 |
                          asio::ssl::context::no_tlsv1_1,
                      ec);
    tls_->use_certificate_chain_file(options_.tls_cert, ec);
    if (ec) {
      return absl::InvalidArgumentError(
          fmt::format("cannot use the certificate {}: {}", options_.tls_cert, ec.message()));
    }
    tls_->use_private_key_file(options_.tls_key, asio::ssl::context::pem, ec);
    if (ec) {
      return absl::InvalidArgumentError(
          fmt::format("cannot use the private key {}: {}", options_.tls_key, ec.message()));
    }
    host_.tls = tls_.get();
    return absl::OkStatus();
  }

  asio::awaitable<void> Accept() {
    while (!host_.stopping) {
      ErrorCode ec;
      tcp::socket socket = co_await acceptor_.async_accept(
          asio::make_strand(io_), asio::redirect_error(asio::use_awaitable, ec));
      if (!acceptor_.is_open()) co_return;
      if (ec) {  // out of descriptors, or a client that went: neither ends the server
        base::LogWarn(fmt::format("http: cannot accept a connection: {}", ec.message()));
        asio::steady_timer pause(acceptor_.get_executor(), kAcceptPause);
        co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, ec));
        continue;
      }
      Serve(std::move(socket));
    }
  }

  void Serve(tcp::socket socket) {
    std::shared_ptr<Session> session;
    uint64_t id = 0;
    {
      absl::MutexLock lock(&mutex_);
      if (sessions_.size() >= options_.limits.connections) return;  // closes it
      session = MakeSession(&host_, std::move(socket));
      id = next_id_++;
      sessions_[id] = session;
    }
    asio::co_spawn(session->executor(), session->Run(),
                   [this, session, id](const std::exception_ptr& error) mutable {
                     if (error != nullptr) {
                       base::LogError("http: a connection ended with an exception");
                       session->Close();
                     }
                     session.reset();
                     absl::MutexLock lock(&mutex_);
                     sessions_.erase(id);
                   });
  }

  template <typename What>
  void ForEach(What what) {
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, session] : sessions_)
      asio::post(session->executor(), [session = session, what] { what(session.get()); });
  }
  bool WaitEmpty(absl::Duration most) {
    absl::MutexLock lock(&mutex_);
    auto empty = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return sessions_.empty(); };
    return mutex_.AwaitWithTimeout(absl::Condition(&empty), most);
  }

  const ServerOptions options_;
  const Router router_;
  std::unique_ptr<asio::ssl::context> tls_;
  SessionHost host_;
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> work_ = asio::make_work_guard(io_);
  tcp::acceptor acceptor_;
  std::string address_;
  std::vector<std::thread> threads_;
  absl::Mutex mutex_;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<uint64_t, std::shared_ptr<Session>> sessions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options, Router router) {
  auto server = std::make_unique<ServerImpl>(options, std::move(router));
  RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace reprise::http
