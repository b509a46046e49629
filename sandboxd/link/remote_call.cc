#include "sandboxd/link/remote_call.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "base/format.h"
#include "base/status_macros.h"

namespace reprise::sandboxd {
namespace {

constexpr int kEventsMax = 64;
constexpr int kFramesARound = 64;  // of one call before the others have their turn
constexpr uint64_t kWakeId = 0;
constexpr uint32_t kTerminalRows = 24, kTerminalColumns = 80;
constexpr char kTerminalType[] = "xterm-256color";

sandbox::Outcome OutcomeOf(agent::EndKind kind) {
  switch (kind) {
    case agent::EndKind::kExited:
      return sandbox::OUTCOME_EXITED;
    case agent::EndKind::kSignaled:
      return sandbox::OUTCOME_SIGNALED;
    case agent::EndKind::kTimedOut:
      return sandbox::OUTCOME_TIMED_OUT;
    case agent::EndKind::kOutputLimit:
      return sandbox::OUTCOME_OUTPUT_TRUNCATED;
    case agent::EndKind::kSetupFailed:
      return sandbox::OUTCOME_SETUP_FAILED;
    case agent::EndKind::kCancelled:
      return sandbox::OUTCOME_CANCELLED;
    case agent::EndKind::kMemoryExceeded:
      return sandbox::OUTCOME_MEMORY_EXCEEDED;
    case agent::EndKind::kPolicyViolation:
      return sandbox::OUTCOME_POLICY_VIOLATION;
  }
  return sandbox::OUTCOME_UNSPECIFIED;
}

std::string DefaultMessage(const agent::End& end, const agent::Start& limits) {
  switch (static_cast<agent::EndKind>(end.kind)) {
    case agent::EndKind::kSignaled:
      return fmt::format("ended by signal {}", end.signal);
    case agent::EndKind::kTimedOut:
      return limits.timeout_ms == 0
                 ? "killed: its time limit was reached"
                 : fmt::format("killed after its time limit of {} ms", limits.timeout_ms);
    case agent::EndKind::kOutputLimit:
      return limits.output_bytes_max == 0 ? "killed: its output limit was reached"
                                          : fmt::format("killed after its output limit of {} bytes",
                                                        limits.output_bytes_max);
    case agent::EndKind::kMemoryExceeded:
      return limits.memory_bytes == 0
                 ? "killed: its memory limit was reached"
                 : fmt::format("killed at its memory limit of {} bytes", limits.memory_bytes);
    case agent::EndKind::kPolicyViolation:
      return "killed by the system-call filter";
    case agent::EndKind::kCancelled:
      return "cancelled";
    default:
      return "";
  }
}

sandbox::Result ResultOf(const agent::End& end, const agent::Start& limits) {
  sandbox::Result result;
  const sandbox::Outcome outcome = OutcomeOf(static_cast<agent::EndKind>(end.kind));
  if (outcome == sandbox::OUTCOME_UNSPECIFIED) {
    result.set_outcome(sandbox::OUTCOME_SANDBOX_LOST);
    result.set_message("the owner of the call reported an end that does not exist");
    return result;
  }
  result.set_outcome(outcome);
  result.set_exit_code(end.exit_code);
  result.set_signal(end.signal);
  result.set_stdout_bytes(end.stdout_bytes);
  result.set_stderr_bytes(end.stderr_bytes);
  result.set_message(end.message.empty() ? DefaultMessage(end, limits) : Printable(end.message));
  result.mutable_usage()->set_wall_us(end.wall_us);
  result.mutable_usage()->set_cpu_us(end.cpu_us);
  result.mutable_usage()->set_memory_peak_bytes(end.memory_peak_bytes);
  return result;
}

sandbox::Result Lost(std::string why) {
  sandbox::Result result;
  result.set_outcome(sandbox::OUTCOME_SANDBOX_LOST);
  result.set_message(std::move(why));
  return result;
}

}  // namespace

agent::Start ToStart(const sandbox::ExecuteRequest& request) {
  agent::Start start;
  start.call_id = request.call_id();
  start.argv.assign(request.argv().begin(), request.argv().end());
  for (const sandbox::EnvVar& variable : request.env()) {
    start.env.push_back(fmt::format("{}={}", variable.name(), variable.value()));
  }
  start.env.push_back(fmt::format("REPRISE_CALL_ID={}", request.call_id()));
  if (request.has_pty()) {
    const sandbox::Pty& pty = request.pty();
    start.pty_rows = static_cast<uint16_t>(pty.rows() == 0 ? kTerminalRows : pty.rows());
    start.pty_columns =
        static_cast<uint16_t>(pty.columns() == 0 ? kTerminalColumns : pty.columns());
    const bool has_term =
        std::any_of(request.env().begin(), request.env().end(),
                    [](const sandbox::EnvVar& variable) { return variable.name() == "TERM"; });
    if (!pty.term().empty() || !has_term) {
      start.env.push_back(
          fmt::format("TERM={}", pty.term().empty() ? kTerminalType : pty.term().c_str()));
    }
  }
  start.working_dir = request.working_dir();
  start.user = request.user();
  start.stdin_open = request.stdin_open();
  const sandbox::Limits& limits = request.limits();
  start.timeout_ms = limits.timeout_ms();
  start.cpu_seconds = (limits.cpu_ms() + 999) / 1000;
  start.file_bytes = limits.file_bytes();
  start.open_files = limits.open_files();
  start.output_bytes_max = limits.output_bytes_max();
  start.best_effort = limits.best_effort() ? 1 : 0;
  return start;
}

// One connection. Read by the loop's thread; written by any.
class RemoteCallLoop::Remote {
 public:
  // `from`: where output goes on. Of `limits`, an attached call has its id and tag only.
  Remote(CallOwner owner, agent::Start limits, OutputPosition from, AgentConnection connection,
         std::unique_ptr<CallSink> sink)
      : owner_(std::move(owner)),
        limits_(std::move(limits)),
        next_{from.stdout_offset, from.stderr_offset},
        connection_(std::move(connection)),
        sink_(std::move(sink)) {}

  // kMore: frames may be left that were taken from the socket already, so it need not become
  // readable again.
  enum class Next { kWait, kMore, kOver };
  // Loop thread only.
  Next Read() {
    for (int i = 0; i < kFramesARound; ++i) {
      if (dropped_.load()) return Next::kOver;
      auto received = connection_.TryReceive();
      if (!received.ok()) {
        const std::string why = owner_.lost ? owner_.lost() : "";
        End(Lost(fmt::format("the owner of the call is gone: {}",
                             why.empty() ? std::string(received.status().message()) : why)));
        return Next::kOver;
      }
      if (!received->has_value()) return Next::kWait;
      if (!Handle(**received)) return Next::kOver;
    }
    return Next::kMore;
  }

  // Any thread: no callback begins any more; one that runs at this moment still ends.
  void Drop() { dropped_.store(true); }

  absl::Status SendFrame(const std::string& frame) ABSL_LOCKS_EXCLUDED(send_mutex_) {
    absl::MutexLock lock(&send_mutex_);
    return connection_.Send(frame);
  }

  const std::string& run_dir() const { return owner_.run_dir; }
  const std::string& call_id() const { return limits_.call_id; }
  int fd() const { return connection_.fd(); }
  uint64_t id = 0;

 private:
  bool Handle(const AgentConnection::Received& received) {
    switch (received.type) {
      case agent::FrameType::kStarted:
        if (std::exchange(started_, true) || ended_) break;
        sink_->OnStarted({});
        return true;
      case agent::FrameType::kOutput: {
        agent::Output output;
        if (ended_ || !agent::Decode(received.payload, &output) || output.stream > 1 ||
            output.data.size() > agent::kDataBytesMax || output.offset != next_[output.stream]) {
          break;
        }
        next_[output.stream] += output.data.size();
        sink_->OnOutput(output.stream == 0 ? sandbox::STREAM_STDOUT : sandbox::STREAM_STDERR,
                        output.offset, output.data);
        return true;
      }
      case agent::FrameType::kEnd: {
        agent::End end;
        if (!agent::Decode(received.payload, &end)) break;
        sandbox::Result result = ResultOf(end, limits_);
        if (owner_.judge) owner_.judge(limits_.tag, &result);
        End(std::move(result));
        return true;  // stays for Release
      }
      case agent::FrameType::kError: {
        sandbox::Result result;
        result.set_outcome(sandbox::OUTCOME_SETUP_FAILED);
        result.set_message(std::string(AgentError(received.payload).message()));
        End(std::move(result));
        return false;
      }
      default:
        break;
    }
    End(Lost("the owner of the call broke the protocol"));
    return false;
  }

  void End(sandbox::Result result) {
    if (std::exchange(ended_, true)) return;
    sink_->OnEnd(std::move(result));
    sink_.reset();
  }

  const CallOwner owner_;
  const agent::Start limits_;
  uint64_t next_[2];  // offsets that must come next; loop's thread
  bool started_ = false;
  absl::Mutex send_mutex_;
  AgentConnection connection_;
  std::unique_ptr<CallSink> sink_;
  bool ended_ = false;
  std::atomic<bool> dropped_{false};
};

// What the call manager holds. Dropping it leaves the call to its owner.
class RemoteCallLoop::Handle final : public RunningCall {
 public:
  Handle(RemoteCallLoop* loop, std::shared_ptr<Remote> remote)
      : loop_(loop), remote_(std::move(remote)) {}
  ~Handle() override {
    remote_->Drop();
    loop_->Forget(remote_->id);
  }

  absl::Status WriteStdin(std::string_view data, bool eof) override {
    for (size_t at = 0; at < data.size() || at == 0; at += agent::kDataBytesMax) {
      const std::string_view piece = data.substr(at, agent::kDataBytesMax);
      const bool last = at + agent::kDataBytesMax >= data.size();
      agent::Stdin request{remote_->call_id(), std::string(piece),
                           static_cast<uint8_t>(last && eof)};
      RETURN_IF_ERROR(AgentRequest(remote_->run_dir(),
                                   agent::Frame(agent::FrameType::kStdin, std::move(request))));
    }
    return absl::OkStatus();
  }
  absl::Status Signal(int signal) override { return Control(signal, /*cancel=*/false); }
  absl::Status Resize(uint32_t rows, uint32_t columns) override {
    return AgentRequest(remote_->run_dir(),
                        agent::Frame(agent::FrameType::kResize,
                                     agent::Resize{remote_->call_id(), static_cast<uint16_t>(rows),
                                                   static_cast<uint16_t>(columns)}));
  }
  absl::Status Cancel() override { return Control(0, /*cancel=*/true); }

  void Acknowledge(sandbox::Stream stream, uint64_t upto) override {
    const uint8_t which = stream == sandbox::STREAM_STDOUT ? 0 : 1;
    // An owner that is gone shows itself to the loop.
    (void)remote_->SendFrame(agent::Frame(agent::FrameType::kAck, agent::Ack{which, upto}));
  }
  void Release() override {
    (void)remote_->SendFrame(agent::RawFrame(agent::FrameType::kRelease, ""));
  }

 private:
  absl::Status Control(int signal, bool cancel) {
    return AgentRequest(
        remote_->run_dir(),
        agent::Frame(agent::FrameType::kSignal,
                     agent::Signal{remote_->call_id(), signal, static_cast<uint8_t>(cancel)}));
  }

  RemoteCallLoop* const loop_;
  const std::shared_ptr<Remote> remote_;
};

absl::StatusOr<std::unique_ptr<RemoteCallLoop>> RemoteCallLoop::Make() {
  std::unique_ptr<RemoteCallLoop> loop(new RemoteCallLoop);
  RETURN_IF_ERROR(loop->Open());
  return loop;
}

absl::Status RemoteCallLoop::Open() {
  epoll_.Reset(::epoll_create1(EPOLL_CLOEXEC));
  wake_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWakeId;
  if (!epoll_.valid() || !wake_.valid() ||
      ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) {
    return base::ErrnoStatus(errno, "cannot make the loop that reads calls");
  }
  thread_ = std::thread([this] { Loop(); });
  return absl::OkStatus();
}

RemoteCallLoop::~RemoteCallLoop() {
  stop_.store(true);
  Wake();
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<std::unique_ptr<RunningCall>> RemoteCallLoop::Start(const CallOwner& owner,
                                                                   agent::Start start,
                                                                   const std::string& stdin_data,
                                                                   const std::string& files,
                                                                   std::unique_ptr<CallSink> sink) {
  start.stdin_bytes = stdin_data.size();
  start.files_bytes = files.size();
  std::string frame = agent::Frame(agent::FrameType::kStart, start);
  if (frame.size() > agent::kFrameBytesMax) {
    return absl::InvalidArgumentError(
        fmt::format("the command and its environment take {} bytes; limit {}", frame.size(),
                    agent::kFrameBytesMax));
  }
  ASSIGN_OR_RETURN(AgentConnection connection, AgentConnection::Open(owner.run_dir));
  auto remote = std::make_shared<Remote>(owner, std::move(start), OutputPosition{},
                                         std::move(connection), std::move(sink));
  // The owner starts nothing before the last byte: an error up to here is an error of a call that
  // never began.
  RETURN_IF_ERROR(remote->SendFrame(frame));
  const std::string data = stdin_data + files;
  for (size_t at = 0; at < data.size(); at += agent::kDataBytesMax) {
    RETURN_IF_ERROR(remote->SendFrame(agent::RawFrame(
        agent::FrameType::kStdinData, std::string_view(data).substr(at, agent::kDataBytesMax))));
  }
  Watch(remote);
  return std::make_unique<Handle>(this, std::move(remote));
}

Attachment RemoteCallLoop::Attach(const CallOwner& owner, const std::string& call_id,
                                  OutputPosition from, std::unique_ptr<CallSink>& sink) {
  auto lost = [](const absl::Status& status) {
    return Attachment{AttachState::kLost, std::string(status.message()), nullptr};
  };
  auto connection = AgentConnection::Open(owner.run_dir);
  if (!connection.ok()) return lost(connection.status());
  absl::Status sent = connection->Send(agent::Frame(
      agent::FrameType::kAttach, agent::Attach{call_id, from.stdout_offset, from.stderr_offset}));
  if (!sent.ok()) return lost(sent);
  auto answer = connection->Receive();
  if (!answer.ok()) return lost(answer.status());
  if (answer->type == agent::FrameType::kUnknown) return {AttachState::kNeverStarted, "", nullptr};
  if (answer->type == agent::FrameType::kError) return lost(AgentError(answer->payload));
  agent::Started started;
  if (answer->type != agent::FrameType::kStarted || !agent::Decode(answer->payload, &started))
    return lost(absl::DataLossError("the owner broke the protocol"));
  agent::Start limits;
  limits.call_id = call_id;
  limits.tag = started.tag;
  auto remote = std::make_shared<Remote>(owner, std::move(limits), from, *std::move(connection),
                                         std::move(sink));
  Watch(remote);
  return {AttachState::kAttached, "", std::make_unique<Handle>(this, std::move(remote))};
}

void RemoteCallLoop::Watch(std::shared_ptr<Remote> remote) {
  epoll_event event{};
  event.events = EPOLLIN;
  const int fd = remote->fd();
  absl::MutexLock lock(&mutex_);
  event.data.u64 = remote->id = next_id_++;
  fresh_.push_back(remote->id);
  remotes_[remote->id] = std::move(remote);
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
  Wake();
}

void RemoteCallLoop::Wake() {
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof(one));
}

void RemoteCallLoop::Forget(uint64_t id) {
  std::shared_ptr<Remote> remote;  // closed after the lock
  absl::MutexLock lock(&mutex_);
  auto found = remotes_.find(id);
  if (found == remotes_.end()) return;
  remote = std::move(found->second);
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, remote->fd(), nullptr);
  remotes_.erase(found);
}

void RemoteCallLoop::Loop() {
  std::vector<epoll_event> events(kEventsMax);
  std::set<uint64_t> again;  // to be read, whether their sockets have something or not
  while (!stop_.load()) {
    const int count = ::epoll_wait(epoll_.get(), events.data(), kEventsMax, again.empty() ? -1 : 0);
    std::set<uint64_t> turn = std::exchange(again, {});
    for (int i = 0; i < count; ++i) {
      const uint64_t id = events[static_cast<size_t>(i)].data.u64;
      if (id != kWakeId) turn.insert(id);
      uint64_t wakes = 0;
      if (id == kWakeId) (void)!::read(wake_.get(), &wakes, sizeof(wakes));
    }
    {
      absl::MutexLock lock(&mutex_);
      turn.insert(fresh_.begin(), fresh_.end());
      fresh_.clear();
    }
    for (const uint64_t id : turn) {
      if (stop_.load()) return;
      std::shared_ptr<Remote> remote;
      {
        absl::MutexLock lock(&mutex_);
        auto found = remotes_.find(id);
        if (found != remotes_.end()) remote = found->second;
      }
      if (remote == nullptr) continue;
      const Remote::Next next = remote->Read();
      if (next == Remote::Next::kOver) Forget(id);
      if (next == Remote::Next::kMore) again.insert(id);
    }
  }
}

}  // namespace reprise::sandboxd
