// Goal: ranks exchange what each has and nothing else, notice a rank that is gone or out of step,
// and let nobody in who does not know the secret. Method: ranks as threads over socket pairs, and
// the handshake over real sockets.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <random>
#include <thread>

#include "engine/parallel/frame.h"
#include "engine/parallel/mesh.h"
#include "reprise/rank/v1/rank.pb.h"
#include "tests/unit/engine/mesh_ranks.h"

namespace reprise::engine {
namespace {

using testing::HasSubstr;

TEST(ShareTest, SharesCoverAllInOrder) {
  for (int64_t n : {0, 1, 3, 7, 64, 1000}) {
    for (int ranks = 1; ranks <= 8; ++ranks) {
      int64_t at = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const Share share = ShareOf(n, rank, ranks);
        EXPECT_EQ(share.begin, at);
        EXPECT_LE(share.size(), (n + ranks - 1) / ranks);
        at = share.end;
      }
      EXPECT_EQ(at, n);
    }
  }
}

TEST(MeshTest, EveryRankHasAllPartsAfterwards) {
  constexpr int kCalls = 60;
  for (int size : {2, 3, 5}) {
    auto ranks = MakeRanks(size);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        // The same sizes on all ranks, up to more than a socket holds; some parts are empty.
        std::mt19937 random(11);
        for (int call = 0; call < kCalls; ++call) {
          std::vector<int64_t> bounds = {5};
          const int64_t most = call % 10 == 0 ? 300'000 : 40;
          for (int r = 0; r < size; ++r)
            bounds.push_back(bounds.back() +
                             static_cast<int64_t>(random() % most) * (random() % 4 != 0));
          const auto value = [&](int64_t at) { return static_cast<float>(at * 7 + call); };
          std::vector<float> data(static_cast<size_t>(bounds.back()) + 3, -1);
          for (int64_t at = bounds[rank]; at < bounds[rank + 1]; ++at) data[at] = value(at);
          ranks[rank]->AllGather(data.data(), bounds);
          ASSERT_TRUE(ranks[rank]->status().ok()) << ranks[rank]->status();
          for (int64_t at = 0; at < static_cast<int64_t>(data.size()); ++at) {
            const bool inside = at >= bounds.front() && at < bounds.back();
            ASSERT_EQ(data[at], inside ? value(at) : -1) << "rank " << rank << " call " << call;
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST(MeshTest, ALostRankIsNamedAndStaysLost) {
  auto ranks = MakeRanks(3);
  ranks[2].reset();
  std::vector<float> data(3, 0);
  const std::vector<int64_t> bounds = {0, 1, 2, 3};
  for (int rank : {0, 1}) {
    ranks[rank]->AllGather(data.data(), bounds);
    EXPECT_EQ(ranks[rank]->status().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(ranks[rank]->status().message(), HasSubstr("rank 2 is gone"));
  }
  const absl::Status first = ranks[0]->status();
  ranks[0]->AllGather(data.data(), bounds);
  EXPECT_EQ(ranks[0]->status(), first);
}

TEST(MeshTest, ARankThatIsOutOfStepIsNamed) {
  auto ranks = MakeRanks(2);
  std::thread other([&] {
    std::vector<float> data(8, 0);
    ranks[1]->AllGather(data.data(), {0, 4, 8});
  });
  std::vector<float> data(8, 0);
  ranks[0]->AllGather(data.data(), {0, 4, 6});
  EXPECT_THAT(ranks[0]->status().message(), HasSubstr("16 bytes for exchange 0, where 8"));
  other.join();
}

// Both sides of a handshake.
std::pair<absl::Status, absl::StatusOr<Role>> Shake(const std::string& address,
                                                    std::string_view theirs, Role role) {
  std::string bound;
  auto listener = Listen(address, &bound);
  EXPECT_TRUE(listener.ok()) << listener.status();
  absl::Status caller;
  std::thread thread([&] {
    auto fd = Dial(bound);
    EXPECT_TRUE(fd.ok()) << fd.status();
    caller = ShakeHandsAsCaller(fd->get(), theirs, role);
  });
  absl::StatusOr<Role> met = 0;
  {
    auto fd = Accept(listener->get(), absl::Seconds(30));
    EXPECT_TRUE(fd.ok()) << fd.status();
    met = ShakeHandsAsListener(fd->get(), "the secret of the group");
  }
  thread.join();
  return {caller, met};
}

TEST(FrameTest, OnlyWhoKnowsTheSecretIsLetIn) {
  base::ScratchDir dir;
  for (const std::string& address : {std::string("127.0.0.1:0"), "unix:" + dir.path() + "/s"}) {
    auto [caller, met] = Shake(address, "the secret of the group", 3);
    EXPECT_TRUE(caller.ok()) << caller;
    ASSERT_TRUE(met.ok()) << met.status();
    EXPECT_EQ(*met, 3u);
  }
  auto [caller, met] = Shake("127.0.0.1:0", "the secret of another", 3);
  EXPECT_EQ(caller.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(met.status().code(), absl::StatusCode::kPermissionDenied);
}

TEST(FrameTest, BadAddressesAreOneClearLine) {
  std::string bound;
  EXPECT_EQ(Listen("nowhere", &bound).status().message(),
            "rank address \"nowhere\": possible: HOST:PORT or unix:PATH");
  EXPECT_EQ(Listen("unix:", &bound).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Dial("unix:/none/such").status().message(), HasSubstr("no rank answers at"));
}

// What is received of so many bytes that stand behind a length of `size`.
absl::Status Received(uint32_t size, const std::string& bytes) {
  int pair[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const base::UniqueFd mine(pair[0]);
  {
    const base::UniqueFd other(pair[1]);
    const std::string head(reinterpret_cast<const char*>(&size), sizeof(size));
    EXPECT_TRUE(base::WriteAll(other.get(), head + bytes, "a test").ok());
  }
  reprise::rank::v1::Start start;
  return ReceiveMessage(mine.get(), &start);
}

TEST(FrameTest, WhatIsNoMessageIsRefused) {
  EXPECT_TRUE(Received(2, "\x08\x01").ok());
  EXPECT_EQ(Received(0xFFFFFFFF, "").code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Received(2, "\xFF\xFF").code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Received(9, "\x08").code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace reprise::engine
