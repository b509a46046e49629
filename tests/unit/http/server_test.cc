// The HTTP server over real sockets: keep-alive, chunks, streams, limits, and everything that a
// hostile client may send.
#include "http/server.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "absl/synchronization/notification.h"
#include "tests/unit/http/raw_client.h"

namespace reprise::http {
namespace {

constexpr size_t kBodyMax = 1000;

// Gives what the test puts in, from the test's thread.
class Source final : public BodySource {
 public:
  void Next(std::function<void(Piece)> deliver) override {
    if (at_ < 3) return deliver(std::optional<std::string>(fmt::format("piece{}\n", at_++)));
    if (fail_) return deliver(absl::InternalError("cut"));
    deliver(std::optional<std::string>());
  }
  void Cancel() override { cancelled_.Notify(); }
  explicit Source(bool fail) : fail_(fail) {}

 private:
  const bool fail_;
  int at_ = 0;
  absl::Notification cancelled_;
};

// Says nothing until the client has gone.
class QuietSource final : public BodySource {
 public:
  explicit QuietSource(absl::Notification* cancelled) : cancelled_(cancelled) {}
  void Next(std::function<void(Piece)> deliver) override { deliver_ = std::move(deliver); }
  void Cancel() override {
    deliver_(absl::CancelledError("gone"));
    cancelled_->Notify();
  }
  std::string KeepAlive() override { return "alive\n"; }
  absl::Duration keepalive_every() const override { return absl::Milliseconds(20); }

 private:
  absl::Notification* const cancelled_;
  std::function<void(Piece)> deliver_;
};

class HttpServer : public ::testing::Test {
 protected:
  void SetUp() override {
    Router router;
    auto add = [&](std::string method, std::string pattern, Handler handler) {
      Route route;
      route.method = std::move(method);
      route.pattern = std::move(pattern);
      route.handler = std::move(handler);
      route.body_max = kBodyMax;
      router.Add(std::move(route));
    };
    add("POST", "/echo", [](RequestPtr request, Respond respond) {
      Response response;
      response.content_type = "text/plain";
      response.body = request->body;
      respond(std::move(response));
    });
    add("GET", "/empty", [](RequestPtr, Respond respond) {
      Response response;
      response.status = 202;
      respond(std::move(response));
    });
    for (const bool fail : {false, true}) {
      add("GET", fail ? "/cut" : "/stream", [fail](RequestPtr, Respond respond) {
        Response response;
        response.stream = std::make_shared<Source>(fail);
        respond(std::move(response));
      });
    }
    add("GET", "/quiet", [this](RequestPtr, Respond respond) {
      Response response;
      response.stream = std::make_shared<QuietSource>(&cancelled_);
      respond(std::move(response));
    });
    // Answers once the client has gone.
    add("POST", "/wait", [this](RequestPtr request, Respond respond) {
      request->client->OnGone([this, respond] {
        respond(ErrorResponse(499, "gone"));
        gone_.Notify();
      });
    });
    Route pieces;
    pieces.method = "POST";
    pieces.pattern = "/pieces";
    pieces.body_max = 10u << 20;
    pieces.in_pieces = true;
    pieces.guard = [](const Request& request) -> std::optional<Response> {
      if (request.header("x-key") == "yes") return std::nullopt;
      return ErrorResponse(401, "no key");
    };
    pieces.handler = [this](RequestPtr request, Respond respond) {
      threads_.emplace_back([request, respond] {
        size_t total = 0;
        while (true) {
          absl::StatusOr<std::string> piece = request->reader->Read();
          if (!piece.ok()) return respond(ErrorResponse(piece.status()));
          if (piece->empty()) break;
          total += piece->size();
        }
        respond(JsonResponse(200, fmt::format("{}", total)));
      });
    };
    router.Add(std::move(pieces));

    ServerOptions options;
    options.listen = "127.0.0.1:0";
    options.limits.header_bytes = 4096;
    options.limits.header_time = absl::Milliseconds(300);
    options.limits.idle_time = absl::Seconds(5);
    options.limits.piece_time = absl::Milliseconds(500);
    options.limits.stop_grace = absl::Milliseconds(200);
    options.limits.connections = 8;
    auto server = Server::Start(options, std::move(router));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  void TearDown() override {
    server_->Shutdown();
    for (std::thread& thread : threads_) thread.join();
  }

  // Sends one request and reads until the server closes.
  std::string Exchange(std::string_view bytes) {
    RawClient client(server_->address());
    client.Send(bytes);
    return client.ReadAll();
  }
  void ExpectRefused(std::string_view bytes, std::string_view status) {
    const std::string answer = Exchange(bytes);
    EXPECT_EQ(answer.substr(0, answer.find('\r')), fmt::format("HTTP/1.1 {}", status)) << bytes;
    const size_t body = answer.find("\r\n\r\n");
    ASSERT_NE(body, std::string::npos) << bytes;
    EXPECT_EQ(answer.find('\n', body + 4), std::string::npos) << "one line: " << answer;
    EXPECT_NE(answer.find("\"message\":"), std::string::npos) << answer;
  }

  absl::Notification cancelled_;
  std::vector<std::thread> threads_;
  std::unique_ptr<Server> server_;
  absl::Notification gone_;
};

TEST_F(HttpServer, KeepsAConnectionAndReadsBothKindsOfBodies) {
  RawClient client(server_->address());
  client.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
  EXPECT_NE(client.ReadUntil("abc").find("HTTP/1.1 200 OK"), std::string::npos);
  client.Send(
      "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
      "2\r\nde\r\n1;ext=1\r\nf\r\n0\r\nTrailer: t\r\n\r\n");
  EXPECT_NE(client.ReadUntil("def").find("Content-Length: 3"), std::string::npos);
  // Two requests at once.
  client.Send(
      "GET /empty HTTP/1.1\r\nHost: x\r\n\r\nGET /empty HTTP/1.1\r\nHost: x\r\n"
      "Connection: close\r\n\r\n");
  const std::string both = client.ReadAll();
  EXPECT_NE(both.find("HTTP/1.1 202 Accepted"), both.rfind("HTTP/1.1 202 Accepted")) << both;
  EXPECT_NE(both.find("Content-Length: 0"), std::string::npos) << both;
}

TEST_F(HttpServer, SendsStreamsInChunksAndCutsThemOffOnErrors) {
  RawClient client(server_->address());
  client.Send("GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
  const std::string answer = client.ReadUntil("0\r\n\r\n");
  EXPECT_NE(answer.find("Transfer-Encoding: chunked"), std::string::npos);
  EXPECT_NE(answer.find("7\r\npiece2\n\r\n0\r\n\r\n"), std::string::npos) << answer;
  client.Send("GET /cut HTTP/1.1\r\nHost: x\r\n\r\n");
  const std::string cut = client.ReadAll();
  EXPECT_NE(cut.find("piece2"), std::string::npos);
  EXPECT_EQ(cut.find("0\r\n\r\n"), std::string::npos) << cut;
  // HTTP/1.0 knows no chunks: the end of the connection ends the body.
  const std::string old = Exchange("GET /stream HTTP/1.0\r\n\r\n");
  EXPECT_NE(old.find("\r\n\r\npiece0\npiece1\npiece2\n"), std::string::npos) << old;
}

TEST_F(HttpServer, KeepsQuietStreamsAliveAndSeesClientsGo) {
  {
    RawClient client(server_->address());
    client.Send("GET /quiet HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_NE(client.ReadUntil("alive\n").find("200 OK"), std::string::npos);
    EXPECT_NE(client.ReadUntil("alive\n"), "");
  }
  EXPECT_TRUE(cancelled_.WaitForNotificationWithTimeout(absl::Seconds(10)));
}

TEST_F(HttpServer, GivesABodyInPieces) {
  const std::string data(3u << 20, 'x');
  const std::string answer =
      Exchange(fmt::format("POST /pieces HTTP/1.1\r\nHost: x\r\nX-Key: yes\r\nConnection: close\r\n"
                           "Content-Length: {}\r\n\r\n{}",
                           data.size(), data));
  EXPECT_NE(answer.find("\r\n\r\n3145728"), std::string::npos) << answer;
  // Refused before its body was read, and told so.
  ExpectRefused(fmt::format("POST /pieces HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{}",
                            data.size(), data),
                "401 Unauthorized");
}

TEST_F(HttpServer, AsksForABodyThatWaits) {
  RawClient client(server_->address());
  client.Send(
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("ok");
  EXPECT_NE(client.ReadUntil("ok").find("200 OK"), std::string::npos);
}

TEST_F(HttpServer, RefusesSmuggledRequests) {
  const std::string head = "POST /echo HTTP/1.1\r\nHost: x\r\n";
  for (const char* rest : {
           "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
           "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
           "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
           "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
           "Content-Length: -1\r\n\r\n",
           "Content-Length: 3x\r\n\r\nabc",
           "Content-Length: 3, 3\r\n\r\nabc",
           "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
           "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
           "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
           "Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
           "Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
           "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff0\r\nabc\r\n0\r\n\r\n",
           "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
           "Host: y\r\nContent-Length: 0\r\n\r\n",
           "Content-Length : 0\r\n\r\n",
           "X: a\nContent-Length: 0\r\n\r\n",
       }) {
    ExpectRefused(head + rest, "400 Bad Request");
  }
  ExpectRefused("POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                "400 Bad Request");
}

TEST_F(HttpServer, RefusesMalformedAndOversizedRequests) {
  ExpectRefused("hello\r\n\r\n", "400 Bad Request");
  ExpectRefused("GET /empty HTTP/2.0\r\nHost: x\r\n\r\n", "400 Bad Request");
  ExpectRefused("GET /empty HTTP/1.1\r\n\r\n", "400 Bad Request");
  ExpectRefused("GET /a/../empty HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                "400 Bad Request");
  ExpectRefused("GET /empty HTTP/1.1\r\nHost: x\r\nX: " + std::string(8192, 'x') + "\r\n\r\n",
                "431 Request Header Fields Too Large");
  ExpectRefused("GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404 Not Found");
  ExpectRefused("DELETE /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                "405 Method Not Allowed");
  ExpectRefused(
      fmt::format("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", kBodyMax + 1),
      "413 Payload Too Large");
  ExpectRefused(fmt::format("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                            "{:x}\r\n{}\r\n0\r\n\r\n",
                            kBodyMax + 1, std::string(kBodyMax + 1, 'x')),
                "413 Payload Too Large");
}

TEST_F(HttpServer, EndsSlowClients) {
  ExpectRefused("GET /empty HTTP/1.1\r\nHost:", "408 Request Timeout");
  ExpectRefused("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na",
                "408 Request Timeout");
}

TEST_F(HttpServer, TellsAHandlerThatItsClientHasGone) {
  {
    RawClient client(server_->address());
    client.Send("POST /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx");
    // A request behind it, still unread, hides the end of the connection from nobody.
    client.Send("GET /empty HTTP/1.1\r\nHost: x\r\n\r\n");
  }
  EXPECT_TRUE(gone_.WaitForNotificationWithTimeout(absl::Seconds(10)));
}

TEST_F(HttpServer, ClosesConnectionsAboveItsLimit) {
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(std::make_unique<RawClient>(server_->address()));
    clients.back()->Send("GET /empty HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_NE(clients.back()->ReadUntil("\r\n\r\n"), "");
  }
  EXPECT_EQ(RawClient(server_->address()).ReadAll(), "");
}

TEST_F(HttpServer, EndsInOrderWithConnectionsOpen) {
  RawClient idle(server_->address()), streaming(server_->address());
  idle.Send("GET /empty HTTP/1.1\r\nHost: x\r\n\r\n");
  idle.ReadUntil("\r\n\r\n");
  streaming.Send("GET /quiet HTTP/1.1\r\nHost: x\r\n\r\n");
  streaming.ReadUntil("alive\n");
  server_->Shutdown();
  EXPECT_EQ(idle.ReadAll(), "");
  streaming.ReadAll();
  EXPECT_TRUE(cancelled_.HasBeenNotified());
}

}  // namespace
}  // namespace reprise::http
