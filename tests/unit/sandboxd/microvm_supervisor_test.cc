// The supervisor of a machine whose guest is this test: how a start goes and fails, and what a
// hostile guest can do. The machine itself is a pair of sockets.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <thread>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/fd.h"
#include "sandboxd/link/agent_link.h"
#include "sandboxd/microvm/box.h"
#include "sandboxd/microvm/mux.h"
#include "sandboxd/microvm/supervisor.h"

namespace reprise::sandboxd::microvm {
namespace {

using ::testing::HasSubstr;

constexpr int kWaitMs = 30'000;

class SocketVmm final : public Vmm {
 public:
  explicit SocketVmm(int port) : port_(port) {}
  absl::Status Launch(const VmConfig&) override { return absl::OkStatus(); }
  absl::Status Load(int) override { return absl::OkStatus(); }
  absl::Status Save(int) override { return absl::OkStatus(); }
  void End() override {}
  absl::Status SaveTo(const std::string&) override { return NoSuchPart("file"); }
  absl::Status LoadFrom(const std::string&) override { return NoSuchPart("file"); }
  absl::Status Pause() override { return absl::OkStatus(); }
  absl::Status Resume() override { return absl::OkStatus(); }
  base::UniqueFd TakePort() override { return std::move(port_); }
  pid_t pid() const override { return 0; }
  void AddPollFds(std::vector<pollfd>*) const override {}
  void Attend() override {}
  std::string LastWords() const override { return "nothing"; }

 private:
  base::UniqueFd port_;
};

// A supervisor in a process of its own, and the guest's side of its port.
class SupervisorTest : public ::testing::Test {
 protected:
  void Start(int64_t deadline_ms = kWaitMs, bool own_system = false) {
    int port[2], ready[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, port), 0);
    ASSERT_EQ(pipe2(ready, O_CLOEXEC), 0);
    fflush(nullptr);
    pid_ = fork();
    ASSERT_GE(pid_, 0);
    if (pid_ == 0) {
      if (chdir(box_.path().c_str()) != 0) _exit(9);
      // As the supervisor's program does: the box is held as long as it lives.
      const int lock = open(kLockFile, O_RDWR | O_CREAT, 0600);
      if (lock < 0 || flock(lock, LOCK_EX) != 0) _exit(9);
      close(port[1]);
      VmConfig config;
      config.mode = static_cast<uint8_t>(Mode::kBoot);
      config.deadline_ms = static_cast<uint64_t>(deadline_ms);
      if (own_system) config.disk = "a disk of its own";
      Supervisor supervisor(config, std::make_unique<SocketVmm>(port[0]), base::UniqueFd(ready[1]));
      _exit(supervisor.Run().ok() ? 0 : 1);
    }
    close(port[0]), close(ready[1]);
    ready_.Reset(ready[0]);
    guest_ = std::make_unique<Mux>(
        agent::Fd(port[1]),
        [this](GuestMessage type, const std::string& payload) {
          got_.push_back(type);
          return true;
        },
        [this] {
          int pair[2];
          EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
          agents_.emplace_back(pair[0]);
          return agent::Fd(pair[1]);
        });
  }
  void TearDown() override {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

  // Runs the guest's side until `done`, or the port is over.
  void GuestUntil(const std::function<bool()>& done) {
    while (!done() && guest_->Step()) {
      std::vector<pollfd> fds;
      guest_->AddPollFds(&fds);
      if (done()) return;
      ASSERT_GT(poll(fds.data(), fds.size(), kWaitMs), 0) << "the supervisor is silent";
    }
  }
  void Say(GuestMessage type) { guest_->Send(GuestFrame(type)); }
  bool Got(GuestMessage type) const {
    return std::find(got_.begin(), got_.end(), type) != got_.end();
  }
  void Boot() {
    guest_->Send(GuestFrame(GuestMessage::kHello, Hello{kGuestWireVersion, "6.1"}));
    GuestUntil([&] { return Got(GuestMessage::kSetup); });
    Say(GuestMessage::kReady);
    GuestUntil([&] { return Got(GuestMessage::kRenew); });
    Say(GuestMessage::kRenewed);
    ASSERT_TRUE(guest_->Step());
    EXPECT_THAT(ReadyWords(), HasSubstr("ok\n"));
  }
  // Asks for a pause; the guest falls silent first, if it answers.
  void Pause(bool answers) {
    absl::Status paused;
    std::thread asker([&] { paused = AskBox(box_.path(), VmRequest::kPause); });
    GuestUntil([&] { return Got(GuestMessage::kHold); });
    if (answers) Say(GuestMessage::kHeld);
    EXPECT_TRUE(guest_->Step());
    asker.join();
    EXPECT_EQ(paused, absl::OkStatus());
  }
  std::string ReadyWords() {
    std::string text;
    char buffer[512];
    ssize_t count;
    while ((count = read(ready_.get(), buffer, sizeof(buffer))) > 0)
      text.append(buffer, static_cast<size_t>(count));
    return text;
  }
  // The supervisor's exit status.
  int AwaitExit() {
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  base::ScratchDir box_{"reprise-supervisor"};
  pid_t pid_ = -1;
  base::UniqueFd ready_;
  std::unique_ptr<Mux> guest_;
  std::vector<GuestMessage> got_;
  std::vector<agent::Fd> agents_;
};

TEST_F(SupervisorTest, OffersTheAgentAndTakesRequests) {
  Start();
  Boot();
  absl::StatusOr<AgentConnection> connection = AgentConnection::Open(box_.path());
  ASSERT_TRUE(connection.ok()) << connection.status();
  ASSERT_TRUE(connection->Send(agent::RawFrame(agent::FrameType::kPing, "")).ok());
  GuestUntil([&] { return !agents_.empty(); });
  const std::string ok = agent::RawFrame(agent::FrameType::kOk, "");
  ASSERT_EQ(send(agents_[0].get(), ok.data(), ok.size(), 0), static_cast<ssize_t>(ok.size()));
  ASSERT_TRUE(guest_->Step());
  EXPECT_TRUE(connection->ReceiveOk().ok());
  Pause(/*answers=*/true);
  EXPECT_EQ(BoxState(box_.path())->paused, 1);
  // What is sent meanwhile waits on this side.
  ASSERT_TRUE(connection->Send(agent::RawFrame(agent::FrameType::kPing, "")).ok());
  got_.clear();
  EXPECT_EQ(AskBox(box_.path(), VmRequest::kResume), absl::OkStatus());
  GuestUntil([&] { return Got(GuestMessage::kRenew); });
  Say(GuestMessage::kRenewed);
  ASSERT_TRUE(guest_->Step());
  EXPECT_FALSE(AskBox(box_.path(), static_cast<VmRequest>(200)).ok());
  EXPECT_EQ(AskBox(box_.path(), VmRequest::kStop), absl::OkStatus());
  EXPECT_EQ(AwaitExit(), 0);
  EXPECT_FALSE(BoxLives(box_.path()));
  EXPECT_EQ(BoxEnd(box_.path()), "");
}

TEST_F(SupervisorTest, AGuestThatDoesNotFallSilentIsPausedAllTheSame) {
  Start();
  Boot();
  Pause(/*answers=*/false);
  EXPECT_EQ(BoxState(box_.path())->paused, 1);
  got_.clear();
  EXPECT_EQ(AskBox(box_.path(), VmRequest::kResume), absl::OkStatus());
  GuestUntil([&] { return Got(GuestMessage::kRenew); });
  EXPECT_TRUE(Got(GuestMessage::kGoOn));
  // The answer that comes too late is none to the next question.
  Say(GuestMessage::kHeld);
  Say(GuestMessage::kRenewed);
  ASSERT_TRUE(guest_->Step());
  EXPECT_EQ(BoxState(box_.path())->paused, 0);
  // One that nobody waits for ends it.
  Say(GuestMessage::kHeld);
  ASSERT_TRUE(guest_->Step());
  EXPECT_NE(AwaitExit(), 0);
}

TEST_F(SupervisorTest, ASystemOfItsOwnMayBringAnAgentLater) {
  Start(kWaitMs, /*own_system=*/true);
  EXPECT_EQ(ReadyWords().substr(0, 8), "step vmm");
  EXPECT_EQ(BoxState(box_.path())->agent, 0);
  EXPECT_TRUE(absl::IsUnimplemented(
      AskBox(box_.path(), agent::Frame(static_cast<agent::FrameType>(VmRequest::kScreenshot),
                                       ScreenshotRequest{"picture"}))))
      << "this machine has no screen";
  // Who connects before the agent is there waits for it.
  absl::StatusOr<AgentConnection> connection = AgentConnection::Open(box_.path());
  ASSERT_TRUE(connection.ok()) << connection.status();
  guest_->Send(GuestFrame(GuestMessage::kHello, Hello{kGuestWireVersion, "6.1"}));
  GuestUntil([&] { return Got(GuestMessage::kSetup); });
  Say(GuestMessage::kReady);
  GuestUntil([&] { return !agents_.empty(); });
  EXPECT_EQ(BoxState(box_.path())->agent, 1);
  // A second greeting would leave calls of the first without an owner.
  guest_->Send(GuestFrame(GuestMessage::kHello, Hello{kGuestWireVersion, "6.1"}));
  (void)guest_->Step();
  EXPECT_EQ(AwaitExit(), 1);
}

TEST_F(SupervisorTest, GarbageEndsTheMachineWithOneLine) {
  Start();
  Boot();
  absl::StatusOr<AgentConnection> connection = AgentConnection::Open(box_.path());
  ASSERT_TRUE(connection.ok()) << connection.status();
  // The guest's credit for a channel that nobody opened.
  guest_->Send("this is not a message of the protocol");
  (void)guest_->Step();
  EXPECT_EQ(AwaitExit(), 1);
  EXPECT_EQ(BoxEnd(box_.path()), "the guest broke the serial protocol");
  EXPECT_TRUE(absl::IsUnavailable(connection->Receive().status()));
  EXPECT_TRUE(absl::IsNotFound(BoxState(box_.path()).status()));
  EXPECT_EQ(BoxState(box_.path()).status().message(), "the guest broke the serial protocol");
}

TEST_F(SupervisorTest, AnAnswerThatNobodyAskedForEndsTheMachine) {
  Start();
  Boot();
  Say(GuestMessage::kRenewed);
  (void)guest_->Step();
  EXPECT_EQ(AwaitExit(), 1);
  EXPECT_THAT(BoxEnd(box_.path()), HasSubstr("may not come now"));
}

TEST_F(SupervisorTest, SaysWhatTheGuestSays) {
  Start();
  guest_->Send(GuestFrame(GuestMessage::kHello, Hello{kGuestWireVersion, "6.1"}));
  GuestUntil([&] { return Got(GuestMessage::kSetup); });
  guest_->Send(GuestFrame(GuestMessage::kFailed, Failed{"mount the image: \x1b[2J oh no"}));
  ASSERT_TRUE(guest_->Step());
  EXPECT_THAT(ReadyWords(),
              HasSubstr("error the guest cannot go on: mount the image: ?[2J oh no (nothing)\n"));
  EXPECT_EQ(AwaitExit(), 1);
}

TEST_F(SupervisorTest, GivesAGuestUpThatIsNotReadyInTime) {
  Start(/*deadline_ms=*/50);
  EXPECT_THAT(ReadyWords(), HasSubstr("error the guest was not ready in 50 ms"));
  EXPECT_EQ(AwaitExit(), 1);
}

TEST_F(SupervisorTest, AGuestOfAnotherVersionIsRefused) {
  Start();
  guest_->Send(GuestFrame(GuestMessage::kHello, Hello{kGuestWireVersion + 1, "6.1"}));
  ASSERT_TRUE(guest_->Step());
  EXPECT_THAT(ReadyWords(), HasSubstr("error the guest sent a message that may not come now"));
  EXPECT_EQ(AwaitExit(), 1);
}

}  // namespace
}  // namespace reprise::sandboxd::microvm
