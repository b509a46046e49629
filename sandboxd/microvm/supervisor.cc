#include "sandboxd/microvm/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "base/format.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/link/agent_link.h"

namespace reprise::sandboxd::microvm {
namespace {

constexpr int kBacklog = 128;
constexpr size_t kRequestsMax = 32;
constexpr size_t kMessagesMax = 16;
constexpr int64_t kExitWaitMs = 500;  // of a VMM whose streams closed
constexpr size_t kMachineIdBytes = 16;

// In the working directory, which is private to the daemon's user.
absl::StatusOr<agent::Fd> ListenAt(const std::string& path) {
  agent::Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  if (!fd.valid() || bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(fd.get(), kBacklog) != 0) {
    return base::ErrnoStatus(errno, "listen at " + path);
  }
  return fd;
}

std::string Entropy() {
  const std::string hex = base::RandomHex(kEntropyBytes);
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2)
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

std::string Refusal(int error, const std::string& why) {
  return agent::Frame(agent::FrameType::kError, agent::Error{error, why});
}

}  // namespace

absl::Status Supervisor::Run() {
  deadline_us_ = base::MonotonicMicros() + static_cast<int64_t>(config_.deadline_ms) * 1000;
  absl::Status started = Start();
  if (!started.ok()) {
    started = Ended(started);
    Tell(fmt::format("error {}", started.message()));
    return started;
  }
  Tell("ok");
  if (!waiting()) ready_.Reset();
  const auto mode = static_cast<Mode>(config_.mode);
  if (mode == Mode::kProbe || mode == Mode::kTemplate) return absl::OkStatus();
  return Serve();
}

absl::Status Supervisor::Start() {
  const auto mode = static_cast<Mode>(config_.mode);
  if (absl::StatusOr<std::string> said = base::ReadFile(kConsoleFile, kConsoleFileBytesMax);
      said.ok())
    vmm_->BeginConsole(*std::move(said));
  RETURN_IF_ERROR(vmm_->Launch(config_));
  base::UniqueFd port = vmm_->TakePort();
  mux_ = std::make_unique<Mux>(
      agent::Fd(port.Release()),
      [this](GuestMessage type, const std::string& payload) { return TakeMessage(type, payload); });
  Step("vmm");
  // Nothing of ours runs in it yet, and perhaps never does.
  if (own_system()) return Listen();
  if (FromTemplate(mode)) {
    RETURN_IF_ERROR(mode == Mode::kClone ? vmm_->Load(kStateFd) : vmm_->LoadFrom(config_.snapshot));
    Step("restore");
    return waiting() ? ListenControl() : BecomeSandbox();
  } else {
    RETURN_IF_ERROR(Expect(GuestMessage::kHello));
    Step("kernel");
    if (mode == Mode::kProbe) return absl::OkStatus();
    mux_->Send(GuestFrame(GuestMessage::kSetup, config_.setup));
    RETURN_IF_ERROR(Expect(GuestMessage::kReady));
    Step("agent");
    if (mode == Mode::kTemplate) {
      if (!mux_->idle()) return absl::InternalError("the guest is not quiet after its start");
      RETURN_IF_ERROR(vmm_->Save(kStateFd));
      vmm_->Attend();
      RETURN_IF_ERROR(base::WriteFileAtomic(kConsoleFile, ConsoleText()));
      Step("save");
      return absl::OkStatus();
    }
  }
  return BecomeSandbox();
}

absl::Status Supervisor::BecomeSandbox() {
  const auto mode = static_cast<Mode>(config_.mode);
  if (FromTemplate(mode)) RETURN_IF_ERROR(vmm_->Resume());
  if (mode == Mode::kRestore) mux_->Send(GuestFrame(GuestMessage::kRestart));
  SendRenew(/*clock_only=*/false);
  RETURN_IF_ERROR(Expect(GuestMessage::kRenewed));
  RETURN_IF_ERROR(Listen());
  agent_ = true;
  Step("renew");
  return absl::OkStatus();
}

absl::Status Supervisor::Adopt(const Adoption& adoption) {
  if (!waiting()) return absl::FailedPreconditionError("this machine is somebody's already");
  config_.hostname = adoption.hostname;
  config_.disk_bytes = adoption.disk_bytes;
  config_.pids = adoption.pids;
  deadline_us_ = base::MonotonicMicros() + static_cast<int64_t>(config_.deadline_ms) * 1000;
  RETURN_IF_ERROR(BecomeSandbox());
  ready_.Reset();
  return absl::OkStatus();
}

absl::Status Supervisor::Listen() {
  ASSIGN_OR_RETURN(agents_, ListenAt(agent::kSocketName));
  return controls_.valid() ? absl::OkStatus() : ListenControl();
}

absl::Status Supervisor::ListenControl() {
  RETURN_IF_ERROR(base::MakeDirs(kControlDir, 0700));
  ASSIGN_OR_RETURN(controls_, ListenAt(fmt::format("{}/{}", kControlDir, agent::kSocketName)));
  return absl::OkStatus();
}

absl::Status Supervisor::Expect(GuestMessage wanted) {
  while (true) {
    RETURN_IF_ERROR(StepMux());
    if (!messages_.empty()) {
      if (messages_.front() != wanted)
        return absl::DataLossError("the guest answered with another message than the next one");
      messages_.erase(messages_.begin());
      return absl::OkStatus();
    }
    const int64_t left_us = deadline_us_ - base::MonotonicMicros();
    if (left_us <= 0) {
      return absl::DeadlineExceededError(
          fmt::format("the guest was not ready in {} ms", config_.deadline_ms));
    }
    std::vector<pollfd> fds;
    mux_->AddPollFds(&fds);
    vmm_->AddPollFds(&fds);
    poll(fds.data(), fds.size(), static_cast<int>(left_us / 1000 + 1));
    vmm_->Attend();
  }
}

absl::Status Supervisor::StepMux() {
  if (!mux_->Step()) return absl::DataLossError(mux_->why());
  if (!failure_.empty()) return absl::InternalError(failure_);
  return absl::OkStatus();
}

void Supervisor::SendRenew(bool clock_only) {
  Renew renew;
  renew.wall_us = base::WallMicros();
  if (!clock_only) {
    renew.entropy = Entropy();
    renew.hostname = config_.hostname;
    renew.disk_bytes = config_.disk_bytes;
    renew.pids = config_.pids;
    renew.machine_id = base::RandomHex(kMachineIdBytes);
  }
  mux_->Send(GuestFrame(GuestMessage::kRenew, std::move(renew)));
}

bool Supervisor::TakeMessage(GuestMessage type, const std::string& payload) {
  if (type == GuestMessage::kFailed) {
    Failed failed;
    if (!agent::Decode(payload, &failed)) return false;
    failure_ = "the guest cannot go on: " + Printable(failed.why.substr(0, kGuestWordsMax));
    return true;
  }
  if (type == GuestMessage::kHello) {
    Hello hello;
    if (!agent::Decode(payload, &hello) || hello.version != kGuestWireVersion) return false;
  } else if (!payload.empty()) {
    return false;
  }
  if (type == GuestMessage::kHeld) {
    if (holding_ && holds_ == 1) held_ = true;  // not of a request that was given up
    return holds_-- > 0;
  }
  if (!agents_.valid()) {
    messages_.push_back(type);
    return messages_.size() <= kMessagesMax;
  }
  // It serves: only answers to what was asked may come, and the greetings of a system that boots
  // by itself.
  if (type == GuestMessage::kHello && own_system() && !agent_) {
    mux_->Send(GuestFrame(GuestMessage::kSetup, config_.setup));
    return true;
  }
  if (type == GuestMessage::kReady && own_system() && !agent_) return agent_ = true;
  return type == GuestMessage::kRenewed && renewals_-- > 0;
}

absl::Status Supervisor::Serve() {
  while (true) {
    if (absl::Status stepped = StepMux(); !stepped.ok())
      return stop_at_us_ >= 0 ? absl::OkStatus() : Ended(stepped);
    std::vector<pollfd> fds = {{controls_.get(), POLLIN, 0}};
    if (agent_ && !mux_->full()) fds.push_back({agents_.get(), POLLIN, 0});
    mux_->AddPollFds(&fds);
    vmm_->AddPollFds(&fds);
    for (const Request& request : requests_) fds.push_back({request.fd.get(), POLLIN, 0});
    fds.push_back({ready_.get(), 0, 0});
    int wait_ms = -1;
    if (stop_at_us_ >= 0) {
      const int64_t left_us = stop_at_us_ - base::MonotonicMicros();
      if (left_us <= 0) return absl::OkStatus();
      wait_ms = static_cast<int>(left_us / 1000 + 1);
    }
    poll(fds.data(), fds.size(), wait_ms);
    // Whom it waited for is gone.
    if (waiting() && fds.back().revents != 0) return absl::OkStatus();
    vmm_->Attend();
    Accept();
    for (Request& request : requests_) TakeRequest(request);
    requests_.remove_if([](const Request& request) { return !request.fd.valid(); });
    if (stop_) return absl::OkStatus();
  }
}

void Supervisor::Accept() {
  while (agent_ && !mux_->full()) {
    agent::Fd fd(accept4(agents_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd.valid()) break;
    mux_->Open(std::move(fd));
  }
  while (requests_.size() < kRequestsMax) {
    base::UniqueFd fd(accept4(controls_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd.valid()) break;
    requests_.emplace_back().fd = std::move(fd);
  }
}

void Supervisor::TakeRequest(Request& request) {
  char buffer[16 << 10];
  const ssize_t count = recv(request.fd.get(), buffer, sizeof(buffer), MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (count <= 0) return request.fd.Reset();
  request.in.Append(std::string_view(buffer, static_cast<size_t>(count)));
  agent::FrameType type;
  std::string payload;
  const agent::FrameReader::Next next = request.in.Pop(&type, &payload);
  if (next == agent::FrameReader::Next::kNeedMore) return;
  if (next == agent::FrameReader::Next::kFrame) {
    const std::string answer = Answer(static_cast<VmRequest>(type), payload);
    (void)!send(request.fd.get(), answer.data(), answer.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  request.fd.Reset();
}

std::string Supervisor::Answer(VmRequest type, const std::string& payload) {
  absl::Status status;
  if (waiting() && type != VmRequest::kAdopt && type != VmRequest::kStatus &&
      type != VmRequest::kStop) {
    return Refusal(EINVAL, "this machine waits for its sandbox");
  }
  switch (type) {
    case VmRequest::kStatus:
      return agent::Frame(static_cast<agent::FrameType>(VmRequest::kState),
                          VmState{static_cast<uint8_t>(paused_), static_cast<uint8_t>(agent_),
                                  static_cast<uint64_t>(vmm_->pid())});
    case VmRequest::kPause:
    case VmRequest::kResume:
      status = SetPaused(type == VmRequest::kPause);
      break;
    case VmRequest::kStop:
      Stop();
      break;
    case VmRequest::kConsole: {
      ConsoleRequest request;
      if (!agent::Decode(payload, &request)) return Refusal(EINVAL, "a malformed request");
      if (!request.typed.empty()) status = vmm_->TypeAtConsole(request.typed);
      if (!status.ok()) break;
      return agent::Frame(static_cast<agent::FrameType>(VmRequest::kConsoleData),
                          vmm_->Console(request.from));
    }
    case VmRequest::kScreenshot: {
      ScreenshotRequest request;
      if (!agent::Decode(payload, &request)) return Refusal(EINVAL, "a malformed request");
      status = Screenshot(request.file);
      break;
    }
    case VmRequest::kAdopt: {
      Adoption adoption;
      if (!agent::Decode(payload, &adoption)) return Refusal(EINVAL, "a malformed request");
      status = Adopt(adoption);
      break;
    }
    case VmRequest::kSnapshot: {
      SnapshotRequest request;
      if (!agent::Decode(payload, &request)) return Refusal(EINVAL, "a malformed request");
      status = Snapshot(request);
      break;
    }
    case VmRequest::kInput: {
      Input input;
      if (!agent::Decode(payload, &input)) return Refusal(EINVAL, "a malformed request");
      status = vmm_->Send(input);
      break;
    }
    default:
      return Refusal(EINVAL, "no such request");
  }
  if (status.ok()) return agent::RawFrame(agent::FrameType::kOk, "");
  const int error = absl::IsUnimplemented(status)       ? ENOSYS
                    : absl::IsUnavailable(status)       ? EAGAIN
                    : absl::IsResourceExhausted(status) ? ENOSPC
                                                        : EIO;
  return Refusal(error, std::string(status.message()));
}

absl::Status Supervisor::Screenshot(const std::string& file) {
  RETURN_IF_ERROR(base::CheckId(file, "the name of a screenshot"));
  const base::UniqueFd fd(
      open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return base::ErrnoStatus(errno, "make " + file);
  return vmm_->Screenshot(fd.get());
}

// A system of its own is asked first: what it writes at its end may be wanted by whom it talks to.
void Supervisor::Stop() {
  Input power;
  power.kind = static_cast<uint8_t>(InputKind::kPower);
  if (!own_system() || paused_ || config_.stop_grace_ms == 0 || !vmm_->Send(power).ok()) {
    stop_ = true;
    return;
  }
  stop_at_us_ = base::MonotonicMicros() + static_cast<int64_t>(config_.stop_grace_ms) * 1000;
}

// The words that the daemon shows: how the VMM ended where it did, else what the guest did.
absl::Status Supervisor::Ended(absl::Status because) {
  std::string why(because.message());
  std::optional<int> exited;
  const int64_t deadline = base::MonotonicMicros() + kExitWaitMs * 1000;
  siginfo_t info{};
  do {
    info.si_pid = 0;
    // Left to be reaped by the VMM's owner.
    if (vmm_->pid() <= 0 ||
        waitid(P_PID, static_cast<id_t>(vmm_->pid()), &info, WEXITED | WNOHANG | WNOWAIT) != 0)
      break;
    if (info.si_pid != 0) exited = info.si_status;
    if (!exited && failure_.empty() && absl::IsDataLoss(because)) usleep(2000);
  } while (!exited && failure_.empty() && absl::IsDataLoss(because) &&
           base::MonotonicMicros() < deadline);
  vmm_->Attend();
  if (exited && failure_.empty()) {
    why = info.si_code == CLD_EXITED
              ? fmt::format("the virtual machine ended with status {} ({})", *exited,
                            vmm_->LastWords())
              : fmt::format("the virtual machine was ended by signal {} ({})", *exited,
                            vmm_->LastWords());
  } else if (!agents_.valid()) {
    why += fmt::format(" ({})", vmm_->LastWords());
  }
  base::LogWarn(why);
  if (absl::Status written = base::WriteFileAtomic(kEndFile, why); !written.ok())
    base::LogWarn(std::string(written.message()));
  return absl::Status(because.code(), why);
}

void Supervisor::Step(const char* name) {
  Tell(fmt::format("step {} {}", name, watch_.ElapsedMicros()));
  watch_.Restart();
}

void Supervisor::Tell(const std::string& line) {
  const std::string text = line + "\n";
  if (ready_.valid()) (void)!write(ready_.get(), text.data(), text.size());
}

}  // namespace reprise::sandboxd::microvm
