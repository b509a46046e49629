// The serial port of a machine as channels: data both ways with credit, closing, and what a hostile
// guest may send.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>

#include "sandboxd/microvm/mux.h"

namespace reprise::sandboxd::microvm {
namespace {

using ::testing::HasSubstr;

std::pair<agent::Fd, agent::Fd> Pair() {
  int fds[2];
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
  return {agent::Fd(fds[0]), agent::Fd(fds[1])};
}

// Both ends over a socket pair, in one thread.
class Ends {
 public:
  Ends() {
    auto [a, b] = Pair();
    host = std::make_unique<Mux>(std::move(a), [this](GuestMessage type, const std::string& text) {
      said.push_back({type, text});
      return true;
    });
    guest = std::make_unique<Mux>(
        std::move(b), [](GuestMessage, const std::string&) { return true; },
        [this] {
          auto [mine, its] = Pair();
          agents.push_back(std::move(mine));
          return std::move(its);
        });
  }
  // The host's end of a new connection; its other end becomes the last of `agents`.
  agent::Fd Connect() {
    auto [mine, its] = Pair();
    EXPECT_TRUE(host->Open(std::move(its)));
    Turn();
    return std::move(mine);
  }
  void Turn(int rounds = 4) {
    for (int i = 0; i < rounds; ++i) {
      ASSERT_TRUE(host->Step()) << host->why();
      ASSERT_TRUE(guest->Step()) << guest->why();
    }
  }

  std::unique_ptr<Mux> host, guest;
  std::vector<agent::Fd> agents;
  std::vector<std::pair<GuestMessage, std::string>> said;
};

std::string ReadAll(const agent::Fd& fd, bool* ended = nullptr) {
  std::string text;
  char buffer[65536];
  ssize_t count;
  while ((count = recv(fd.get(), buffer, sizeof(buffer), MSG_DONTWAIT)) > 0)
    text.append(buffer, static_cast<size_t>(count));
  if (ended != nullptr) *ended = count == 0;
  return text;
}

TEST(MicrovmMuxTest, CarriesConnectionsBothWaysAndCloses) {
  Ends ends;
  const agent::Fd a = ends.Connect();
  agent::Fd b = ends.Connect();
  ASSERT_EQ(ends.agents.size(), 2u);
  ASSERT_EQ(send(a.get(), "to a", 4, 0), 4);
  ASSERT_EQ(send(ends.agents[1].get(), "from b", 6, 0), 6);
  ends.Turn();
  EXPECT_EQ(ReadAll(ends.agents[0]), "to a");
  EXPECT_EQ(ReadAll(b), "from b");
  // What was sent before a close arrives, then the end.
  ASSERT_EQ(send(ends.agents[0].get(), "last", 4, 0), 4);
  ends.agents[0].Reset();
  b.Reset();
  ends.Turn();
  bool ended = false;
  EXPECT_EQ(ReadAll(a, &ended), "last");
  EXPECT_TRUE(ended);
  ReadAll(ends.agents[1], &ended);
  EXPECT_TRUE(ended);
  ends.Turn();
  EXPECT_TRUE(ends.host->idle());
  EXPECT_TRUE(ends.guest->idle());
}

TEST(MicrovmMuxTest, OneThatDoesNotReadStopsNobodyElse) {
  Ends ends;
  const agent::Fd stuck = ends.Connect(), lively = ends.Connect();
  std::string sent, got;
  const std::string piece(10'000, 'x');
  // Far more than the port, the window and the sockets hold: the sender is stopped, not the port.
  for (int i = 0; i < 400; ++i) {
    const ssize_t count = send(ends.agents[0].get(), piece.data(), piece.size(), MSG_DONTWAIT);
    if (count > 0) sent += piece.substr(0, static_cast<size_t>(count));
    ends.Turn(1);
  }
  EXPECT_LT(sent.size(), 400 * piece.size());
  ASSERT_EQ(send(ends.agents[1].get(), "alive", 5, 0), 5);
  ends.Turn();
  EXPECT_EQ(ReadAll(lively), "alive");
  for (int i = 0; i < 200; ++i) {
    got += ReadAll(stuck);
    ends.Turn(1);
  }
  EXPECT_TRUE(got == sent) << got.size() << " of " << sent.size();
}

TEST(MicrovmMuxTest, CarriesControlMessages) {
  Ends ends;
  Failed failed{std::string(100'000, 'w')};
  ends.guest->Send(GuestFrame(GuestMessage::kFailed, failed));
  ends.Turn();
  ASSERT_EQ(ends.said.size(), 1u);
  EXPECT_EQ(ends.said[0].first, GuestMessage::kFailed);
}

// A host whose guest is this test.
class Hostile {
 public:
  Hostile() {
    auto [a, b] = Pair();
    port = std::move(b);
    host = std::make_unique<Mux>(std::move(a), [](GuestMessage type, const std::string&) {
      return type == GuestMessage::kHello;
    });
  }
  void Say(uint32_t channel, uint32_t type, const std::string& payload, int64_t length = -1) {
    const MuxHeader header{channel, type,
                           static_cast<uint32_t>(length < 0 ? payload.size() : length)};
    std::string bytes(reinterpret_cast<const char*>(&header), sizeof(header));
    bytes += payload;
    ASSERT_EQ(send(port.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }
  // What the host said of the guest; "" while it goes on.
  std::string Verdict() { return host->Step() ? "" : host->why(); }

  agent::Fd port;
  std::unique_ptr<Mux> host;
};

TEST(MicrovmMuxTest, EndsWithOneClearLineForEachKindOfGarbage) {
  const auto data = static_cast<uint32_t>(MuxType::kData);
  auto verdict = [](auto&& say) {
    Hostile hostile;
    auto [mine, its] = Pair();
    EXPECT_TRUE(hostile.host->Open(std::move(its)));  // channel 1
    EXPECT_EQ(hostile.Verdict(), "");
    say(hostile);
    return hostile.Verdict();
  };
  EXPECT_THAT(verdict([&](Hostile& h) { h.Say(0, data, "", 1 << 30); }), HasSubstr("too long"));
  EXPECT_THAT(verdict([&](Hostile& h) { h.Say(2, data, "x"); }), HasSubstr("not open"));
  EXPECT_THAT(verdict([&](Hostile& h) { h.Say(9, static_cast<uint32_t>(MuxType::kOpen), ""); }),
              HasSubstr("protocol"));
  EXPECT_THAT(verdict([&](Hostile& h) { h.Say(1, 77, ""); }), HasSubstr("protocol"));
  EXPECT_THAT(verdict([&](Hostile& h) { h.Say(0, static_cast<uint32_t>(MuxType::kClose), ""); }),
              HasSubstr("protocol"));
  EXPECT_THAT(verdict([&](Hostile& h) {
                h.Say(1, static_cast<uint32_t>(MuxType::kCredit), std::string("\1\0\0\0", 4));
              }),
              HasSubstr("protocol"))
      << "credit for what was never sent";
  EXPECT_THAT(verdict([&](Hostile& h) {
                h.Say(1, static_cast<uint32_t>(MuxType::kClose), "");
                h.Say(1, data, "x");
              }),
              HasSubstr("not open"))
      << "data after the close";
  EXPECT_THAT(verdict([&](Hostile& h) { h.Say(0, data, GuestFrame(GuestMessage::kReady)); }),
              HasSubstr("may not come now"));
  EXPECT_THAT(verdict([&](Hostile& h) { h.Say(0, data, std::string(64, '\xff')); }),
              HasSubstr("protocol"));
  EXPECT_THAT(verdict([&](Hostile& h) { h.port.Reset(); }), HasSubstr("closed the serial port"));
}

TEST(MicrovmMuxTest, BoundsWhatAGuestMakesItHold) {
  Hostile hostile;
  auto [mine, its] = Pair();
  EXPECT_TRUE(hostile.host->Open(std::move(its)));
  const std::string piece(kMuxDataBytesMax, 'x');
  std::string verdict;
  size_t sent = 0;
  // Its reader takes nothing: once the socket is full, only the credit is left.
  for (int i = 0; i < 200 && verdict.empty(); ++i) {
    hostile.Say(1, static_cast<uint32_t>(MuxType::kData), piece);
    sent += piece.size();
    verdict = hostile.Verdict();
  }
  EXPECT_THAT(verdict, HasSubstr("credit"));
  EXPECT_LT(sent, 4u << 20);
  // A control message may not grow without an end either.
  Hostile other;
  const uint32_t length = kControlBytesMax * 4;
  std::string begin(reinterpret_cast<const char*>(&length), sizeof(length));
  other.Say(0, static_cast<uint32_t>(MuxType::kData), begin + "x");
  verdict.clear();
  for (int i = 0; i < 200 && verdict.empty(); ++i) {
    other.Say(0, static_cast<uint32_t>(MuxType::kData), piece);
    verdict = other.Verdict();
  }
  EXPECT_THAT(verdict, HasSubstr("too long"));
}

// Fixed bytes that look random: no input may do more than end the machine.
TEST(MicrovmMuxTest, LivesThroughRandomBytes) {
  uint64_t state = 42;
  auto next = [&] { return state = state * 6364136223846793005ull + 1442695040888963407ull; };
  for (int round = 0; round < 300; ++round) {
    Hostile hostile;
    auto [mine, its] = Pair();
    hostile.host->Open(std::move(its));
    for (int frame = 0; frame < 20; ++frame) {
      std::string payload((next() >> 33) % 64, '\0');
      for (char& c : payload) c = static_cast<char>(next() >> 40);
      hostile.Say((next() >> 40) % 3, (next() >> 40) % 6, payload,
                  (next() >> 60) == 0 ? static_cast<int64_t>(next() >> 34) : -1);
      if (!hostile.host->Step()) {
        EXPECT_NE(hostile.host->why(), "");
        break;
      }
    }
  }
}

}  // namespace
}  // namespace reprise::sandboxd::microvm
