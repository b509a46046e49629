// The daemon's side of a call against an owner that this test plays: every frame is dealt with
// however the socket groups them, what breaks the protocol ends the call, and a dropped call is
// silent.
#include "sandboxd/link/remote_call.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <optional>
#include <thread>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/fd.h"

namespace reprise::sandboxd {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kWaitMax = absl::Seconds(30);
constexpr int kManyFrames = 1000;  // more than the loop takes from one call in its turn

struct Seen {
  absl::Mutex mutex;
  int started ABSL_GUARDED_BY(mutex) = 0;
  std::string out ABSL_GUARDED_BY(mutex);
  std::optional<sandbox::Result> result ABSL_GUARDED_BY(mutex);

  sandbox::Result WaitEnd() {
    absl::MutexLock lock(&mutex);
    auto ended = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return result.has_value(); };
    EXPECT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&ended), kWaitMax)) << "no end came";
    return result.value_or(sandbox::Result());
  }
};

class SeenSink final : public CallSink {
 public:
  explicit SeenSink(std::shared_ptr<Seen> seen) : seen_(std::move(seen)) {}
  void OnStarted(std::vector<sandbox::StepTime>) override {
    absl::MutexLock lock(&seen_->mutex);
    ++seen_->started;
  }
  void OnOutput(sandbox::Stream, uint64_t offset, std::string_view data) override {
    absl::MutexLock lock(&seen_->mutex);
    seen_->out += data;
  }
  void OnEnd(sandbox::Result result) override {
    absl::MutexLock lock(&seen_->mutex);
    seen_->result = std::move(result);
  }

 private:
  const std::shared_ptr<Seen> seen_;
};

// The other end of one connection.
class Peer {
 public:
  explicit Peer(int fd) : fd_(fd) {}
  agent::FrameType Receive(std::string* payload) {
    agent::FrameType type{};
    char buffer[4096];
    while (true) {
      switch (frames_.Pop(&type, payload)) {
        case agent::FrameReader::Next::kFrame:
          return type;
        case agent::FrameReader::Next::kMalformed:
          ADD_FAILURE() << "the daemon broke the protocol";
          return {};
        case agent::FrameReader::Next::kNeedMore:
          break;
      }
      const ssize_t count = ::read(fd_.get(), buffer, sizeof(buffer));
      if (count <= 0) return {};
      frames_.Append(std::string_view(buffer, static_cast<size_t>(count)));
    }
  }
  // One write of all: the daemon may find everything with one look.
  void Send(const std::string& frames) {
    EXPECT_EQ(::send(fd_.get(), frames.data(), frames.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(frames.size()));
  }

 private:
  base::UniqueFd fd_;
  agent::FrameReader frames_;
};

std::string Output(uint64_t offset, const std::string& data) {
  return agent::Frame(agent::FrameType::kOutput, agent::Output{0, offset, data});
}
std::string Started(uint64_t tag = 0) {
  return agent::Frame(agent::FrameType::kStarted, agent::Started{tag});
}
std::string Exited(uint64_t stdout_bytes) {
  agent::End end;
  end.kind = static_cast<uint8_t>(agent::EndKind::kExited);
  end.stdout_bytes = stdout_bytes;
  return agent::Frame(agent::FrameType::kEnd, end);
}

class RemoteCallTest : public testing::Test {
 protected:
  void SetUp() override {
    listener_.Reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = fmt::format("{}/{}", dir_.path(), agent::kSocketName);
    ASSERT_LT(path.size(), sizeof(address.sun_path));
    std::memcpy(address.sun_path, path.c_str(), path.size());
    ASSERT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    ASSERT_EQ(::listen(listener_.get(), 8), 0);
    auto loop = RemoteCallLoop::Make();
    ASSERT_TRUE(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
  }
  Peer Accept() { return Peer(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)); }
  CallOwner Owner() { return {dir_.path()}; }
  // Starts a call whose request the peer has taken.
  std::unique_ptr<RunningCall> StartCall(std::optional<Peer>* peer) {
    agent::Start start;
    start.call_id = "call";
    start.argv = {"true"};
    start.tag = 7;
    auto call = loop_->Start(owner_, std::move(start), "", "", std::make_unique<SeenSink>(seen_));
    EXPECT_TRUE(call.ok()) << call.status();
    peer->emplace(Accept());
    std::string payload;
    EXPECT_EQ((*peer)->Receive(&payload), agent::FrameType::kStart);
    return call.ok() ? *std::move(call) : nullptr;
  }

  base::ScratchDir dir_;
  base::UniqueFd listener_;
  CallOwner owner_ = Owner();
  std::shared_ptr<Seen> seen_ = std::make_shared<Seen>();
  std::unique_ptr<RemoteCallLoop> loop_;
};

TEST_F(RemoteCallTest, ManySmallFramesAtOnceAreAllDealtWith) {
  std::optional<Peer> peer;
  const auto call = StartCall(&peer);
  std::string frames = Started();
  for (int i = 0; i < kManyFrames; ++i) frames += Output(static_cast<uint64_t>(i), "x");
  peer->Send(frames + Exited(kManyFrames));  // and the socket stays silent
  EXPECT_EQ(seen_->WaitEnd().outcome(), sandbox::OUTCOME_EXITED);
  absl::MutexLock lock(&seen_->mutex);
  EXPECT_EQ(seen_->out, std::string(kManyFrames, 'x'));
  EXPECT_EQ(seen_->started, 1);
}

TEST_F(RemoteCallTest, FramesBehindTheAnswerToAnAttachAreDealtWith) {
  std::optional<uint64_t> tag;
  owner_.judge = [&](uint64_t of_start, sandbox::Result* result) {
    tag = of_start;
    result->set_outcome(sandbox::OUTCOME_MEMORY_EXCEEDED);
  };
  std::thread owner([&] {
    Peer peer = Accept();
    std::string payload;
    EXPECT_EQ(peer.Receive(&payload), agent::FrameType::kAttach);
    agent::Attach attach;
    EXPECT_TRUE(agent::Decode(payload, &attach));
    EXPECT_EQ(attach.stdout_from, 3u);
    peer.Send(Started(7) + Output(3, "rest") + Exited(7));
    peer.Receive(&payload);  // until the daemon closes
  });
  std::unique_ptr<CallSink> sink = std::make_unique<SeenSink>(seen_);
  Attachment attachment = loop_->Attach(owner_, "call", {3, 0}, sink);
  ASSERT_EQ(attachment.state, AttachState::kAttached) << attachment.reason;
  EXPECT_EQ(seen_->WaitEnd().outcome(), sandbox::OUTCOME_MEMORY_EXCEEDED);
  EXPECT_EQ(tag, 7u) << "the owner gives back the tag of the start";
  attachment.call.reset();
  loop_.reset();
  owner.join();
  absl::MutexLock lock(&seen_->mutex);
  EXPECT_EQ(seen_->out, "rest");
}

TEST_F(RemoteCallTest, WhatBreaksTheProtocolEndsTheCall) {
  const std::string bad[] = {
      Started() + Output(1, "a gap"),
      Started() + Output(0, "twice") + Output(0, "twice"),
      Started() + Started(),
      Started() + Output(0, std::string(agent::kDataBytesMax + 1, 'x')),
      agent::RawFrame(agent::FrameType::kOk, ""),
      agent::RawFrame(agent::FrameType::kEnd, "short"),
      std::string(8, '\xff'),
  };
  for (const std::string& frames : bad) {
    seen_ = std::make_shared<Seen>();
    std::optional<Peer> peer;
    const auto call = StartCall(&peer);
    peer->Send(frames);
    EXPECT_EQ(seen_->WaitEnd().outcome(), sandbox::OUTCOME_SANDBOX_LOST);
  }
}

TEST_F(RemoteCallTest, ARefusalIsAnEndAndADeadOwnerALostSandbox) {
  std::optional<Peer> peer;
  auto call = StartCall(&peer);
  peer->Send(agent::Frame(agent::FrameType::kError, agent::Error{EINVAL, "no such user"}));
  sandbox::Result result = seen_->WaitEnd();
  EXPECT_EQ(result.outcome(), sandbox::OUTCOME_SETUP_FAILED);
  EXPECT_THAT(result.message(), HasSubstr("no such user"));
  seen_ = std::make_shared<Seen>();
  call = StartCall(&peer);
  peer.reset();
  EXPECT_EQ(seen_->WaitEnd().outcome(), sandbox::OUTCOME_SANDBOX_LOST);
  listener_.Reset();
  EXPECT_TRUE(absl::IsUnavailable(
      loop_->Start(owner_, {}, "", "", std::make_unique<SeenSink>(seen_)).status()));
}

TEST_F(RemoteCallTest, ADroppedCallIsSilent) {
  std::optional<Peer> peer, other;
  const auto dropped_seen = seen_;
  auto dropped = StartCall(&peer);
  dropped.reset();
  std::string payload;
  EXPECT_EQ(peer->Receive(&payload), agent::FrameType{}) << "the connection is closed";
  seen_ = std::make_shared<Seen>();
  const auto call = StartCall(&other);  // the loop goes on with others
  other->Send(Started() + Exited(0));
  EXPECT_EQ(seen_->WaitEnd().outcome(), sandbox::OUTCOME_EXITED);
  absl::MutexLock lock(&dropped_seen->mutex);
  EXPECT_FALSE(dropped_seen->result.has_value());
}

}  // namespace
}  // namespace reprise::sandboxd
