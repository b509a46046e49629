#include "sandboxd/link/call_reactor.h"

#include <errno.h>
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "sandboxd/link/agent_connection.h"
#include "sandboxd/link/call_link.h"

namespace reprise::sandboxd {
namespace {

using agent::FrameType;

constexpr int kEventsPerTurn = 64;

}  // namespace

struct CallReactor::Core {
  std::unique_ptr<RunningCall> Add(const std::shared_ptr<Core>& self,
                                   std::shared_ptr<CallLink> link) ABSL_LOCKS_EXCLUDED(mutex);
  void Forget(uint64_t id) ABSL_LOCKS_EXCLUDED(mutex);
  void Loop() ABSL_LOCKS_EXCLUDED(mutex);

  base::UniqueFd epoll, wake;
  absl::Mutex mutex;
  bool stopping ABSL_GUARDED_BY(mutex) = false;
  uint64_t next_id ABSL_GUARDED_BY(mutex) = 1;  // 0 is the wake descriptor
  std::map<uint64_t, std::shared_ptr<CallLink>> links ABSL_GUARDED_BY(mutex);
};

namespace {

// What the substrate's users hold. Dropping it detaches.
class RemoteCall final : public RunningCall {
 public:
  RemoteCall(std::shared_ptr<CallLink> link, std::function<void()> forget)
      : link_(std::move(link)), forget_(std::move(forget)) {}
  ~RemoteCall() override {
    if (link_->Detach()) forget_();
  }

  absl::Status WriteStdin(std::string_view data, bool eof) override {
    while (data.size() > agent::kDataBytesMax) {
      RETURN_IF_ERROR(Send(data.substr(0, agent::kDataBytesMax), false));
      data.remove_prefix(agent::kDataBytesMax);
    }
    return Send(data, eof);
  }
  absl::Status Signal(int signal) override {
    return AgentRequest(link_->run_dir(), agent::Frame(FrameType::kSignal,
                                                       agent::Signal{link_->call_id(), signal, 0}));
  }
  absl::Status Cancel() override {
    return AgentRequest(link_->run_dir(),
                        agent::Frame(FrameType::kSignal, agent::Signal{link_->call_id(), 0, 1}));
  }
  void Acknowledge(sandbox::Stream stream, uint64_t upto) override {
    link_->Acknowledge(stream, upto);
  }
  void Release() override { link_->Release(); }

 private:
  absl::Status Send(std::string_view data, bool eof) {
    const agent::Stdin message{link_->call_id(), std::string(data),
                               static_cast<uint8_t>(eof ? 1 : 0)};
    return AgentRequest(link_->run_dir(), agent::Frame(FrameType::kStdin, message));
  }

  const std::shared_ptr<CallLink> link_;
  const std::function<void()> forget_;
};

// The agent was told to start a call and did not say whether it did: nobody may say that nothing
// ran.
class UnknownCall final : public RunningCall {
 public:
  absl::Status WriteStdin(std::string_view, bool) override { return Gone(); }
  absl::Status Signal(int) override { return Gone(); }
  absl::Status Cancel() override { return Gone(); }
  void Acknowledge(sandbox::Stream, uint64_t) override {}
  void Release() override {}

 private:
  static absl::Status Gone() { return absl::FailedPreconditionError("the call has ended"); }
};

}  // namespace

absl::StatusOr<std::unique_ptr<CallReactor>> CallReactor::Make() {
  auto core = std::make_shared<Core>();
  core->epoll.Reset(epoll_create1(EPOLL_CLOEXEC));
  if (!core->epoll.valid()) return base::ErrnoStatus(errno, "make an epoll descriptor");
  core->wake.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!core->wake.valid()) return base::ErrnoStatus(errno, "make an event descriptor");
  epoll_event event{};
  event.events = EPOLLIN;
  if (epoll_ctl(core->epoll.get(), EPOLL_CTL_ADD, core->wake.get(), &event) != 0) {
    return base::ErrnoStatus(errno, "watch the event descriptor");
  }
  std::unique_ptr<CallReactor> reactor(new CallReactor(core));
  reactor->thread_ = std::thread([core] { core->Loop(); });
  return reactor;
}

CallReactor::~CallReactor() {
  std::map<uint64_t, std::shared_ptr<CallLink>> links;
  {
    absl::MutexLock lock(&core_->mutex);
    core_->stopping = true;
    links.swap(core_->links);
  }
  for (const auto& [id, link] : links) (void)link->Detach();
  const uint64_t one = 1;
  (void)!write(core_->wake.get(), &one, sizeof(one));
  thread_.join();
}

absl::StatusOr<std::unique_ptr<RunningCall>> CallReactor::Start(
    const AgentEndpoint& endpoint, const agent::Start& start, std::string_view stdin_data,
    std::vector<sandbox::StepTime> steps, std::unique_ptr<CallSink> sink) {
  ASSIGN_OR_RETURN(AgentConnection connection, AgentConnection::Open(endpoint.run_dir));
  RETURN_IF_ERROR(connection.Send(agent::Frame(FrameType::kStart, start)));
  // Until the last byte is there, the agent starts nothing.
  while (!stdin_data.empty()) {
    RETURN_IF_ERROR(connection.Send(
        agent::RawFrame(FrameType::kStdinData, stdin_data.substr(0, agent::kDataBytesMax))));
    stdin_data.remove_prefix(std::min<size_t>(stdin_data.size(), agent::kDataBytesMax));
  }
  const absl::StatusOr<AgentConnection::Received> answer = connection.Receive();
  if (answer.ok() && answer->type == FrameType::kError) return AgentError(answer->payload);
  agent::Started started;
  if (!answer.ok() || answer->type != FrameType::kStarted ||
      !agent::Decode(answer->payload, &started)) {
    sandbox::Result result;
    result.set_outcome(sandbox::OUTCOME_INTERRUPTED);
    result.set_message(
        fmt::format("whether the command started is not known: {}",
                    answer.ok() ? "the agent broke the protocol" : answer.status().message()));
    sink->OnStarted(std::move(steps));
    sink->OnEnd(std::move(result));
    return std::make_unique<UnknownCall>();
  }
  sink->OnStarted(std::move(steps));
  return core_->Add(
      core_, std::make_shared<CallLink>(endpoint, start.call_id, std::move(connection), started.tag,
                                        OutputPosition{}, std::move(sink)));
}

Attachment CallReactor::Attach(const AgentEndpoint& endpoint, const std::string& call_id,
                               OutputPosition from, std::unique_ptr<CallSink>& sink) {
  auto lost = [](const absl::Status& why) {
    return Attachment{AttachState::kLost, std::string(why.message()), nullptr};
  };
  absl::StatusOr<AgentConnection> connection = AgentConnection::Open(endpoint.run_dir);
  if (!connection.ok()) return lost(connection.status());
  const agent::Attach attach{call_id, from.stdout_offset, from.stderr_offset};
  if (absl::Status sent = connection->Send(agent::Frame(FrameType::kAttach, attach)); !sent.ok())
    return lost(sent);
  const absl::StatusOr<AgentConnection::Received> answer = connection->Receive();
  if (!answer.ok()) return lost(answer.status());
  if (answer->type == FrameType::kUnknown) return {AttachState::kNeverStarted, "", nullptr};
  if (answer->type == FrameType::kError) return lost(AgentError(answer->payload));
  agent::Started started;
  if (answer->type != FrameType::kStarted || !agent::Decode(answer->payload, &started)) {
    return lost(absl::DataLossError("the agent of the sandbox broke the protocol"));
  }
  sink->OnStarted({});
  return {AttachState::kAttached, "",
          core_->Add(core_, std::make_shared<CallLink>(endpoint, call_id, *std::move(connection),
                                                       started.tag, from, std::move(sink)))};
}

std::unique_ptr<RunningCall> CallReactor::Core::Add(const std::shared_ptr<Core>& self,
                                                    std::shared_ptr<CallLink> link) {
  uint64_t id = 0;
  {
    absl::MutexLock lock(&mutex);
    id = next_id++;
    links[id] = link;
  }
  link->SetPlace(epoll.get(), id);
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT;
  event.data.u64 = id;
  // Fails only without memory for a table entry; then the call never ends here, and the next daemon
  // finds it.
  (void)epoll_ctl(epoll.get(), EPOLL_CTL_ADD, link->fd(), &event);
  return std::make_unique<RemoteCall>(std::move(link), [self, id] { self->Forget(id); });
}

void CallReactor::Core::Forget(uint64_t id) {
  std::shared_ptr<CallLink> last;  // closed outside of the lock
  absl::MutexLock lock(&mutex);
  auto found = links.find(id);
  if (found == links.end()) return;
  last = std::move(found->second);
  links.erase(found);
  (void)epoll_ctl(epoll.get(), EPOLL_CTL_DEL, last->fd(), nullptr);
}

void CallReactor::Core::Loop() {
  epoll_event events[kEventsPerTurn];
  while (true) {
    const int count = epoll_wait(epoll.get(), events, kEventsPerTurn, -1);
    for (int i = 0; i < count; ++i) {
      std::shared_ptr<CallLink> link;
      {
        absl::MutexLock lock(&mutex);
        if (stopping) return;
        auto found = links.find(events[i].data.u64);
        if (found != links.end()) link = found->second;
      }
      if (link != nullptr && !link->OnEvent()) Forget(events[i].data.u64);
    }
  }
}

}  // namespace reprise::sandboxd
