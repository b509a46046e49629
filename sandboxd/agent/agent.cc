#include "sandboxd/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <algorithm>

#include "sandboxd/agent/file_ops.h"

extern char** environ;

namespace reprise::sandboxd::agent {
namespace {

constexpr size_t kConnectionsMax = 512;
constexpr size_t kCallsMax = 1024;
constexpr size_t kReleasedMax = 256;
constexpr size_t kOutBytesMax = 256 << 10;  // queued on one connection before more output is taken

}  // namespace

void Agent::Run() {
  while (true) {
    std::vector<pollfd> fds = {{child_signals_.get(), POLLIN, 0}};
    if (connections_.size() < kConnectionsMax) fds.push_back({listener_.get(), POLLIN, 0});
    for (const Connection& connection : connections_) {
      short events = connection.stdin_wait == nullptr ? POLLIN : 0;
      if (!connection.out.empty()) events |= POLLOUT;
      fds.push_back({connection.fd.get(), events, 0});
    }
    int64_t now = NowMs(), next = -1;
    auto consider = [&](const std::shared_ptr<Call>& call) {
      call->AddPollFds(&fds);
      const int64_t deadline = call->NextDeadlineMs(now);
      if (deadline >= 0 && (next < 0 || deadline < next)) next = deadline;
    };
    for (const auto& [id, call] : calls_) consider(call);
    for (const auto& call : released_) consider(call);
    size_t life = fds.size();
    if (options_.life_fd >= 0) fds.push_back({options_.life_fd, 0, 0});
    const int timeout =
        next < 0 ? -1 : static_cast<int>(std::clamp<int64_t>(next - now, 0, 1 << 30));
    poll(fds.data(), fds.size(), timeout);

    Reap();
    Accept();
    now = NowMs();
    for (const auto& [id, call] : calls_) call->Step(now);
    for (const auto& call : released_) call->Step(now);
    released_.remove_if([](const auto& call) { return call->gone(); });
    for (Connection& connection : connections_) Serve(connection);
    connections_.remove_if([](const Connection& connection) { return !connection.fd.valid(); });
    const bool life_over = options_.life_fd >= 0 && (fds[life].revents & (POLLHUP | POLLERR)) != 0;
    if (life_over) options_.life_fd = -1;
    life_over_ = life_over_ || life_over;
    if (options_.single_call && Finished()) return;
  }
}

// Released with nothing left of it, or nobody can ask for a call any more.
bool Agent::Finished() const {
  if (!calls_.empty() || !released_.empty()) return false;
  const bool owed = std::any_of(connections_.begin(), connections_.end(),
                                [](const Connection& c) { return !c.out.empty(); });
  return !owed && (served_ || life_over_);
}

void Agent::Reap() {
  signalfd_siginfo info;
  while (read(child_signals_.get(), &info, sizeof(info)) > 0) {
  }
  while (true) {
    const pid_t pid = waitpid(-1, nullptr, WNOHANG);
    if (pid <= 0) return;
    for (const auto& [id, call] : calls_) {
      if (call->keeper() == pid) call->KeeperGone();
    }
    for (const auto& call : released_) {
      if (call->keeper() == pid) call->KeeperGone();
    }
  }
}

void Agent::Accept() {
  while (connections_.size() < kConnectionsMax) {
    Fd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd.valid()) return;
    // A peer outside of this pid namespace has no pid here: only the daemon may talk to the agent.
    ucred peer{};
    socklen_t size = sizeof(peer);
    if (!options_.single_call &&
        (getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.pid != 0)) {
      continue;
    }
    connections_.emplace_back().fd = std::move(fd);
  }
}

void Agent::Serve(Connection& connection) {
  if (connection.stdin_wait != nullptr) {
    TryStdin(connection);
  } else {
    Read(connection);
  }
  // Until the socket is full or nothing is owed: poll wakes only for what is queued.
  do {
    if (connection.fd.valid()) Pump(connection);
    if (connection.fd.valid()) Write(connection);
  } while (connection.fd.valid() && connection.out.empty() && Owed(connection));
}

// Whether the call has output, or its end, that the connection was not given yet.
bool Agent::Owed(const Connection& connection) {
  if (connection.call == nullptr || connection.end_sent) return false;
  const Call& call = *connection.call;
  return connection.sent[0] < call.produced(0) || connection.sent[1] < call.produced(1) ||
         call.end().has_value();
}

void Agent::Read(Connection& connection) {
  char buffer[kDataBytesMax];
  for (int round = 0; round < 16 && connection.fd.valid() && connection.stdin_wait == nullptr;
       ++round) {
    const ssize_t count = recv(connection.fd.get(), buffer, sizeof(buffer), MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) return connection.fd.Reset();
    connection.in.Append(std::string_view(buffer, static_cast<size_t>(count)));
    FrameType type;
    std::string payload;
    while (connection.fd.valid() && connection.stdin_wait == nullptr) {
      const FrameReader::Next next = connection.in.Pop(&type, &payload);
      if (next == FrameReader::Next::kNeedMore) break;
      if (next == FrameReader::Next::kMalformed) return connection.fd.Reset();
      HandleFrame(connection, type, payload);
    }
  }
}

void Agent::Write(Connection& connection) {
  size_t at = 0;
  while (at < connection.out.size()) {
    const ssize_t count = send(connection.fd.get(), connection.out.data() + at,
                               connection.out.size() - at, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) break;
    if (count < 0) return connection.fd.Reset();
    at += static_cast<size_t>(count);
  }
  connection.out.erase(0, at);
  if (connection.closing && connection.out.empty()) connection.fd.Reset();
}

void Agent::Answer(Connection& connection, int error, const std::string& message) {
  connection.out +=
      error == 0 ? RawFrame(FrameType::kOk, "") : Frame(FrameType::kError, Error{error, message});
  connection.closing = true;
}

void Agent::HandleFrame(Connection& connection, FrameType type, const std::string& payload) {
  if (connection.closing) return;  // the rest of a request that was refused
  if (!connection.answered) {
    connection.answered = true;
    return HandleFirst(connection, type, payload);
  }
  if (connection.start != nullptr && type == FrameType::kStdinData) {
    connection.start_data += payload;
    const uint64_t wanted = connection.start->stdin_bytes + connection.start->files_bytes;
    if (connection.start_data.size() > wanted) return connection.fd.Reset();
    if (connection.start_data.size() == wanted) HandleStart(connection);
    return;
  }
  if (connection.call != nullptr && type == FrameType::kRelease) {
    Release(connection.call->id());
    connection.closing = true;
    return;
  }
  Ack ack;
  if (connection.call != nullptr && type == FrameType::kAck && Decode(payload, &ack) &&
      ack.stream < 2) {
    return connection.call->Acknowledge(ack.stream, ack.upto);
  }
  connection.fd.Reset();
}

void Agent::HandleFirst(Connection& connection, FrameType type, const std::string& payload) {
  if (IsFileOperation(type) && options_.single_call)
    return Answer(connection, ENOSYS, "no files here");
  if (IsFileOperation(type)) return StartFileOperation(connection, type, payload);
  if (type == FrameType::kStart) {
    auto start = std::make_unique<Start>();
    if (!Decode(payload, start.get()) || start->argv.empty() || start->call_id.empty() ||
        start->stdin_bytes > kStdinBytesMax || start->files_bytes > kFilesBytesMax) {
      return connection.fd.Reset();
    }
    connection.start = std::move(start);
    if (connection.start->stdin_bytes + connection.start->files_bytes == 0) HandleStart(connection);
    return;
  }
  if (type == FrameType::kAttach) {
    Attach attach;
    if (!Decode(payload, &attach)) return connection.fd.Reset();
    return HandleAttach(connection, attach);
  }
  HandleControl(connection, type, payload);
}

void Agent::HandleStart(Connection& connection) {
  const std::unique_ptr<Start> start = std::move(connection.start);
  if (Find(start->call_id) != nullptr)
    return Answer(connection, EEXIST, "call " + start->call_id + " was started");
  if (options_.single_call && served_)
    return Answer(connection, EBUSY, "this worker has served its call");
  if (calls_.size() >= kCallsMax)
    return Answer(connection, EAGAIN, "too many calls in this sandbox");
  Identity identity;
  std::string why;
  const std::string user = start->user.empty() ? options_.user : start->user;
  if (!ResolveIdentity(user, &identity, &why)) return Answer(connection, EINVAL, why);
  const std::vector<std::string> env = Environment(start->env, identity);
  auto call = std::make_shared<Call>(*start, options_.launcher);
  const std::string files = connection.start_data.substr(start->stdin_bytes);
  connection.start_data.resize(start->stdin_bytes);
  if (!call->Run(identity, env, std::move(connection.start_data), files, &why))
    return Answer(connection, EAGAIN, why);
  served_ = true;
  calls_[start->call_id] = call;
  connection.call = std::move(call);
  connection.out += Frame(FrameType::kStarted, Started{start->tag});
}

void Agent::HandleAttach(Connection& connection, const Attach& attach) {
  const std::shared_ptr<Call> call = Find(attach.call_id);
  if (call == nullptr) {
    connection.out += RawFrame(FrameType::kUnknown, "");
    connection.closing = true;
    return;
  }
  const uint64_t from[2] = {attach.stdout_from, attach.stderr_from};
  for (int stream = 0; stream < 2; ++stream) {
    if (from[stream] < call->acknowledged(stream) || from[stream] > call->produced(stream)) {
      return Answer(connection, ERANGE, "output at that offset is not here");
    }
  }
  for (Connection& other : connections_) {
    if (other.call == call) other.fd.Reset();  // of a daemon that is gone
  }
  connection.call = call;
  for (int stream = 0; stream < 2; ++stream) {
    call->Acknowledge(stream, from[stream]);
    connection.sent[stream] = from[stream];
  }
  connection.out += Frame(FrameType::kStarted, Started{call->tag()});
}

void Agent::HandleControl(Connection& connection, FrameType type, const std::string& payload) {
  CallId id;
  Signal signal;
  Resize resize;
  if (type == FrameType::kPing) return Answer(connection, 0, "");
  if (type == FrameType::kPrune) {
    Prune();
    return Answer(connection, 0, "");
  }
  if (type == FrameType::kStdin) {
    connection.stdin_wait = std::make_unique<Stdin>();
    if (!Decode(payload, connection.stdin_wait.get())) return connection.fd.Reset();
    return TryStdin(connection);
  }
  if (type == FrameType::kRelease && Decode(payload, &id)) {
    Release(id.call_id);
    return Answer(connection, 0, "");
  }
  if (type == FrameType::kSignal && Decode(payload, &signal)) {
    const std::shared_ptr<Call> call = Find(signal.call_id);
    if (call == nullptr || call->ended())
      return Answer(connection, ESRCH, "the call is not running");
    if (signal.cancel != 0) {
      call->Kill(EndKind::kCancelled);
      return Answer(connection, 0, "");
    }
    const int error = call->Signal(signal.signal);
    return Answer(connection, error, std::string("cannot signal the call: ") + strerror(error));
  }
  if (type == FrameType::kResize && Decode(payload, &resize) && resize.rows > 0 &&
      resize.columns > 0) {
    const std::shared_ptr<Call> call = Find(resize.call_id);
    if (call == nullptr || call->ended())
      return Answer(connection, ESRCH, "the call is not running");
    const int error = call->Resize(resize.rows, resize.columns);
    if (error == ENOTTY) return Answer(connection, EINVAL, "the call has no terminal");
    return Answer(connection, error, std::string("cannot resize the terminal: ") + strerror(error));
  }
  connection.fd.Reset();
}

void Agent::TryStdin(Connection& connection) {
  const std::shared_ptr<Call> call = Find(connection.stdin_wait->call_id);
  if (call != nullptr && !call->ended() && !call->StdinHasRoom()) return;
  if (call == nullptr || call->ended()) {
    Answer(connection, ESRCH, "the call is not running");
  } else {
    call->WriteStdin(connection.stdin_wait->data, connection.stdin_wait->eof != 0);
    Answer(connection, 0, "");
  }
  connection.stdin_wait.reset();
}

void Agent::StartFileOperation(Connection& connection, FrameType type, const std::string& payload) {
  std::string user, why;
  Identity identity;
  if (!FileOperationUser(type, payload, &user)) return connection.fd.Reset();
  if (!ResolveIdentity(user.empty() ? options_.user : user, &identity, &why))
    return Answer(connection, EINVAL, why);
  const pid_t pid = fork();
  if (pid < 0) return Answer(connection, errno, std::string("cannot fork: ") + strerror(errno));
  if (pid == 0) {
    const int fd = connection.fd.get();
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    // Every other descriptor is the agent's: other connections must not stay open because of this
    // process.
    const int mine = 3;
    if (fd != mine) dup2(fd, mine);
    close_range(mine + 1, ~0u, 0);
    ServeFileOperation(mine, type, payload, std::move(connection.in), identity,
                       options_.working_dir);
  }
  connection.fd.Reset();
}

void Agent::Prune() {
  std::vector<std::string> orphans;
  for (const auto& [id, call] : calls_) {
    const bool attached =
        std::any_of(connections_.begin(), connections_.end(),
                    [&](const Connection& c) { return c.fd.valid() && c.call == call; });
    if (attached) continue;
    call->Kill(EndKind::kCancelled);  // nothing happens to one that ended
    orphans.push_back(id);
  }
  for (const std::string& id : orphans) Release(id);
}

void Agent::Release(const std::string& call_id) {
  auto found = calls_.find(call_id);
  if (found == calls_.end()) return;
  for (int stream = 0; stream < 2; ++stream)
    found->second->Acknowledge(stream, found->second->produced(stream));
  if (!found->second->gone()) released_.push_back(found->second);
  if (released_.size() > kReleasedMax) released_.pop_front();
  calls_.erase(found);
}

// Puts output, and the end after all of it, on a call's connection, as far as there is room.
void Agent::Pump(Connection& connection) {
  if (connection.call == nullptr || connection.end_sent) return;
  const Call& call = *connection.call;
  for (int stream = 0; stream < 2; ++stream) {
    while (connection.out.size() < kOutBytesMax) {
      Output output{static_cast<uint8_t>(stream), connection.sent[stream],
                    call.OutputAt(stream, connection.sent[stream])};
      if (output.data.empty()) break;
      connection.sent[stream] += output.data.size();
      connection.out += Frame(FrameType::kOutput, std::move(output));
    }
  }
  if (!call.end() || connection.sent[0] < call.produced(0) || connection.sent[1] < call.produced(1))
    return;
  connection.out += Frame(FrameType::kEnd, *call.end());
  connection.end_sent = true;
}

std::shared_ptr<Call> Agent::Find(const std::string& call_id) const {
  auto found = calls_.find(call_id);
  return found == calls_.end() ? nullptr : found->second;
}

// The agent's own variables are the image's; the call's replace them.
std::vector<std::string> Agent::Environment(const std::vector<std::string>& added,
                                            const Identity& identity) const {
  std::map<std::string, std::string> variables = {
      {"PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}};
  auto put = [&](const std::string& variable) {
    const size_t equals = variable.find('=');
    if (equals != std::string::npos)
      variables[variable.substr(0, equals)] = variable.substr(equals + 1);
  };
  for (char** variable = environ; variable != nullptr && *variable != nullptr; ++variable)
    put(*variable);
  // The runtime gave the agent a HOME; that of the call's user is another.
  variables["HOME"] = options_.home.empty() ? identity.home : options_.home;
  for (const std::string& variable : added) put(variable);
  std::vector<std::string> env;
  for (const auto& [name, value] : variables) env.push_back(name + "=" + value);
  return env;
}

}  // namespace reprise::sandboxd::agent
