// Watches as the daemon keeps them: in order for who takes them, an overflow for who does not, and
// an end that is told.
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "sandboxd/watch_manager.h"
#include "tests/unit/sandboxd/node.h"

namespace reprise::sandboxd {
namespace {

sandbox::WatchEvent Created(const std::string& path) {
  sandbox::WatchEvent event;
  event.set_kind(sandbox::WATCH_EVENT_KIND_CREATED);
  event.set_path(path);
  return event;
}

WatchStream::Event Next(WatchStream& stream) {
  absl::Notification ready;
  WatchStream::Event event = absl::UnknownError("");
  stream.Next([&](WatchStream::Event next) {
    event = std::move(next);
    ready.Notify();
  });
  ready.WaitForNotification();
  return event;
}

class WatchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    node_.MakeBox();
    auto made = WatchManager::Make(&node_.sandboxes());
    ASSERT_TRUE(made.ok()) << made.status();
    watches_ = *std::move(made);
  }
  std::shared_ptr<WatchStream> Open() {
    auto stream = watches_->Open("box", "/work", true);
    EXPECT_TRUE(stream.ok()) << stream.status();
    return stream.ok() ? *stream : nullptr;
  }

  Node node_;
  std::unique_ptr<WatchManager> watches_;
};

TEST_F(WatchTest, EventsComeInOrderAfterTheStartAndThenTheEnd) {
  const auto stream = Open();
  for (int i = 0; i < 1000; ++i) node_.tier().Happen(Created(fmt::format("{}", i)));
  node_.tier().Happen(absl::NotFoundError("gone"));
  EXPECT_EQ(Next(*stream)->kind(), sandbox::WATCH_EVENT_KIND_STARTED);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(Next(*stream)->path(), fmt::format("{}", i));
  EXPECT_TRUE(absl::IsNotFound(Next(*stream).status()));
  EXPECT_TRUE(absl::IsNotFound(stream->TakeAll().status()));
}

TEST_F(WatchTest, WhoTakesTooLittleIsTold) {
  const auto stream = Open();
  const auto steady = Open();
  EXPECT_EQ(Next(*steady)->kind(), sandbox::WATCH_EVENT_KIND_STARTED);
  for (size_t i = 0; i <= kWatchEventsMax; ++i) {
    node_.tier().Happen(Created(fmt::format("{}", i)));
    EXPECT_EQ(Next(*steady)->path(), fmt::format("{}", i));
  }
  node_.tier().Happen(absl::NotFoundError("gone"));
  EXPECT_FALSE(Next(*steady).ok());
  while (!stream->ended()) {  // another thread reads it
  }
  const auto taken = stream->TakeAll();
  ASSERT_TRUE(taken.ok());
  EXPECT_EQ(taken->front().kind(), sandbox::WATCH_EVENT_KIND_OVERFLOW);
  EXPECT_EQ(taken->back().path(), fmt::format("{}", kWatchEventsMax));
  EXPECT_LE(taken->size(), kWatchEventsMax);
}

TEST_F(WatchTest, WatchesAreCountedAndClosed) {
  EXPECT_TRUE(absl::IsNotFound(watches_->Open("box", "/none", false).status()));
  std::vector<std::shared_ptr<WatchStream>> streams;
  for (size_t i = 0; i < kWatchesPerSandboxMax; ++i) streams.push_back(Open());
  EXPECT_TRUE(absl::IsResourceExhausted(watches_->Open("box", "/work", false).status()));
  watches_->Close(streams.back());
  EXPECT_TRUE(streams.back()->ended());
  streams.back() = Open();
  EXPECT_TRUE(absl::IsNotFound(watches_->Open("another", "/work", false).status()));
  watches_->Shutdown();
  EXPECT_EQ(Next(*streams[0])->kind(), sandbox::WATCH_EVENT_KIND_STARTED);
  EXPECT_TRUE(absl::IsUnavailable(Next(*streams[0]).status()));
  EXPECT_EQ(node_.tier().watches(), 0);
  EXPECT_TRUE(absl::IsUnavailable(watches_->Open("box", "/work", false).status()));
}

}  // namespace
}  // namespace reprise::sandboxd
