#include "sandboxd/microvm/box.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <filesystem>
#include <thread>

#include "base/clock.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "sandboxd/link/agent_link.h"

namespace reprise::sandboxd::microvm {
namespace {

using base::UniqueFd;

constexpr int kFirstFreeFd = 16;     // above those that a supervisor inherits
constexpr int64_t kGraceMs = 5'000;  // beyond the machine's own deadline
constexpr int64_t kStopMs = 10'000;  // for a supervisor to end by itself
constexpr int64_t kDieMs = 30'000;   // after SIGKILL
constexpr int64_t kStateMs = 10'000;
constexpr auto kPoll = std::chrono::milliseconds(2);
constexpr size_t kReadyBytesMax = 16 << 10;

class Actions {
 public:
  Actions() { posix_spawn_file_actions_init(&actions_); }
  ~Actions() { posix_spawn_file_actions_destroy(&actions_); }
  Actions(const Actions&) = delete;
  Actions& operator=(const Actions&) = delete;
  void Install(int fd, int target) { posix_spawn_file_actions_adddup2(&actions_, fd, target); }
  void Open(int target, const char* path, int flags) {
    posix_spawn_file_actions_addopen(&actions_, target, path, flags, 0600);
  }
  const posix_spawn_file_actions_t* get() const { return &actions_; }

 private:
  posix_spawn_file_actions_t actions_;
};

// A copy out of the way of the descriptors that the child gets.
absl::StatusOr<UniqueFd> Aside(int fd) {
  UniqueFd copy(fcntl(fd, F_DUPFD_CLOEXEC, kFirstFreeFd));
  if (!copy.valid()) return base::ErrnoStatus(errno, "copy a descriptor");
  return copy;
}

absl::Status Spawn(const std::string& box, const std::string& program, int ready,
                   const BoxFds& fds) {
  Actions actions;
  const std::string log = box + "/log";
  actions.Open(0, "/dev/null", O_RDWR);
  actions.Open(1, log.c_str(), O_WRONLY | O_CREAT | O_APPEND);
  actions.Install(1, 2);
  std::vector<UniqueFd> copies;
  for (const auto& [fd, target] :
       {std::pair{ready, kReadyFd}, {fds.ram, kRamFd}, {fds.state, kStateFd}}) {
    if (fd < 0) continue;
    ASSIGN_OR_RETURN(UniqueFd copy, Aside(fd));
    actions.Install(copy.get(), target);
    copies.push_back(std::move(copy));
  }
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  char* const argv[] = {const_cast<char*>(program.c_str()), const_cast<char*>(box.c_str()),
                        nullptr};
  pid_t pid = -1;
  const int error = posix_spawn(&pid, program.c_str(), actions.get(), &attributes, argv, environ);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return base::ErrnoStatus(error, "start " + program);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    return absl::InternalError(fmt::format("{} did not start", program));
  return absl::OkStatus();
}

// Reads what the supervisor tells of its start, to its last line.
absl::Status AwaitReady(int fd, int64_t deadline_us, std::vector<sandbox::StepTime>* steps) {
  std::string text;
  while (text.size() < kReadyBytesMax) {
    const int64_t left_us = deadline_us - base::MonotonicMicros();
    pollfd item{fd, POLLIN, 0};
    if (left_us <= 0 || (poll(&item, 1, static_cast<int>(left_us / 1000 + 1)) == 0))
      return absl::DeadlineExceededError("the supervisor of the machine did not tell how it went");
    char buffer[1024];
    const ssize_t count = read(fd, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    text.append(buffer, static_cast<size_t>(count));
    for (size_t end; (end = text.find('\n')) != std::string::npos; text.erase(0, end + 1)) {
      const std::string line = text.substr(0, end);
      if (line == "ok") return absl::OkStatus();
      if (line.starts_with("error ")) return absl::InternalError(Printable(line.substr(6)));
      const size_t space = line.rfind(' ');
      if (steps == nullptr || !line.starts_with("step ") || space < 5) continue;
      int64_t us = 0;
      std::from_chars(line.data() + space + 1, line.data() + line.size(), us);
      sandbox::StepTime& step = steps->emplace_back();
      step.set_step("microvm." + line.substr(5, space - 5));
      step.set_duration_us(us);
    }
  }
  return absl::InternalError("the supervisor of the machine ended without a word");
}

// OK as soon as neither the supervisor nor its machine holds the box.
bool AwaitFree(const std::string& box, int64_t ms) {
  const int64_t deadline = base::MonotonicMicros() + ms * 1000;
  while (BoxLives(box)) {
    if (base::MonotonicMicros() > deadline) return false;
    std::this_thread::sleep_for(kPoll);
  }
  return true;
}

// The id of the supervisor, from the kernel; 0 when it does not live.
pid_t SupervisorOf(const std::string& box) {
  const UniqueFd fd(open(fmt::format("{}/{}", box, kLockFile).c_str(), O_RDWR | O_CLOEXEC));
  struct flock ask {};
  ask.l_type = F_WRLCK;
  ask.l_whence = SEEK_SET;
  if (!fd.valid() || fcntl(fd.get(), F_GETLK, &ask) != 0 || ask.l_type == F_UNLCK) return 0;
  return ask.l_pid;
}

}  // namespace

namespace {

// Returns the end on which the supervisor told how it went.
absl::StatusOr<UniqueFd> StartSupervisor(const std::string& box, const std::string& program,
                                         const VmConfig& config, const BoxFds& fds,
                                         std::vector<sandbox::StepTime>* steps) {
  RETURN_IF_ERROR(base::MakeDirs(box, 0700));
  agent::Encoder encoder;
  VmConfig copy = config;
  copy.Fields(encoder);
  absl::Status status =
      base::WriteFileAtomic(fmt::format("{}/{}", box, kConfigFile), encoder.Take());
  int pipes[2] = {-1, -1};
  if (status.ok() && pipe2(pipes, O_CLOEXEC) != 0) status = base::ErrnoStatus(errno, "make a pipe");
  UniqueFd read_end(pipes[0]), write_end(pipes[1]);
  if (status.ok()) status = Spawn(box, program, write_end.get(), fds);
  write_end.Reset();
  if (status.ok()) {
    const int64_t wait_ms = static_cast<int64_t>(config.deadline_ms) + kGraceMs;
    status = AwaitReady(read_end.get(), base::MonotonicMicros() + wait_ms * 1000, steps);
  }
  if (status.ok()) return read_end;
  if (absl::Status removed = RemoveBox(box); !removed.ok()) return removed;
  return status;
}

}  // namespace

absl::Status StartBox(const std::string& box, const std::string& program, const VmConfig& config,
                      const BoxFds& fds, std::vector<sandbox::StepTime>* steps) {
  return StartSupervisor(box, program, config, fds, steps).status();
}

absl::StatusOr<UniqueFd> StartReadyBox(const std::string& box, const std::string& program,
                                       const VmConfig& config, const BoxFds& fds) {
  return StartSupervisor(box, program, config, fds, nullptr);
}

bool BoxLives(const std::string& box) {
  const UniqueFd fd(open(fmt::format("{}/{}", box, kLockFile).c_str(), O_RDWR | O_CLOEXEC));
  return fd.valid() && flock(fd.get(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

std::string BoxEnd(const std::string& box) {
  return Printable(base::ReadFile(fmt::format("{}/{}", box, kEndFile), kEndBytesMax).value_or(""));
}

absl::StatusOr<VmState> BoxState(const std::string& box) {
  if (!BoxLives(box)) {
    const std::string why = BoxEnd(box);
    return absl::NotFoundError(why.empty() ? "its virtual machine is gone" : why);
  }
  auto ask = [&]() -> absl::StatusOr<VmState> {
    ASSIGN_OR_RETURN(AgentConnection connection,
                     AgentConnection::Open(fmt::format("{}/{}", box, kControlDir)));
    RETURN_IF_ERROR(connection.Send(VmFrame(VmRequest::kStatus), kStateMs));
    ASSIGN_OR_RETURN(const AgentConnection::Received received, connection.Receive(kStateMs));
    VmState state;
    if (static_cast<VmRequest>(received.type) != VmRequest::kState ||
        !agent::Decode(received.payload, &state)) {
      return absl::DataLossError("the supervisor of the machine broke the protocol");
    }
    return state;
  };
  absl::StatusOr<VmState> state = ask();
  if (state.ok() || BoxLives(box)) {
    return state.ok() ? state : absl::UnavailableError(std::string(state.status().message()));
  }
  const std::string why = BoxEnd(box);
  return absl::NotFoundError(why.empty() ? "its virtual machine is gone" : why);
}

absl::Status AskBox(const std::string& box, const std::string& frame, int64_t timeout_ms) {
  return AgentRequest(fmt::format("{}/{}", box, kControlDir), frame, timeout_ms);
}

absl::StatusOr<VmConfig> BoxConfig(const std::string& box) {
  const std::string path = fmt::format("{}/{}", box, kConfigFile);
  ASSIGN_OR_RETURN(const std::string text, base::ReadFile(path, kConfigBytesMax));
  VmConfig config;
  if (!agent::Decode(text, &config))
    return absl::DataLossError(
        fmt::format("{} is malformed: its sandbox is of another version", path));
  return config;
}

absl::StatusOr<ConsoleData> BoxConsole(const std::string& box, const ConsoleRequest& request) {
  ASSIGN_OR_RETURN(AgentConnection connection,
                   AgentConnection::Open(fmt::format("{}/{}", box, kControlDir)));
  RETURN_IF_ERROR(connection.Send(
      agent::Frame(static_cast<agent::FrameType>(VmRequest::kConsole), request), kStateMs));
  ASSIGN_OR_RETURN(const AgentConnection::Received received, connection.Receive(kStateMs));
  if (received.type == agent::FrameType::kError) return AgentError(received.payload);
  ConsoleData data;
  if (static_cast<VmRequest>(received.type) != VmRequest::kConsoleData ||
      !agent::Decode(received.payload, &data)) {
    return absl::DataLossError("the supervisor of the machine broke the protocol");
  }
  return data;
}

absl::Status RemoveBox(const std::string& box) {
  std::error_code error;
  if (!std::filesystem::exists(box, error)) return absl::OkStatus();
  if (BoxLives(box)) {
    const bool asked = AskBox(box, VmFrame(VmRequest::kStop)).ok();
    if (!asked || !AwaitFree(box, kStopMs)) {
      // Its machine dies with it.
      if (const pid_t pid = SupervisorOf(box); pid > 0) kill(pid, SIGKILL);
      if (!AwaitFree(box, kDieMs))
        return absl::InternalError(fmt::format("the machine of {} does not die", box));
    }
  }
  std::filesystem::remove_all(box, error);
  return error ? base::ErrnoStatus(error.value(), "remove " + box) : absl::OkStatus();
}

}  // namespace reprise::sandboxd::microvm
