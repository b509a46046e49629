// How a machine stands still: the port falls silent first, so that nothing is on its way between
// the two sides; then it stops, and what it has of its own goes into files where that is wanted.
// The same machine goes on with the channels that it had; a copy begins with none.
#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>

#include "absl/cleanup/cleanup.h"
#include "base/format.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/microvm/memory_image.h"
#include "sandboxd/microvm/supervisor.h"

namespace reprise::sandboxd::microvm {
namespace {

constexpr int64_t kHoldMs = 5'000;  // for a guest to fall silent

// An empty directory of this name.
absl::Status Renewed(const char* dir) {
  std::error_code error;
  std::filesystem::remove_all(dir, error);
  if (error) return base::ErrnoStatus(error.value(), fmt::format("remove {}", dir));
  return base::MakeDirs(dir, 0700);
}

// The memory that this machine and its template have in common.
absl::Status SaveTemplate(const std::string& dir) {
  const std::string memory = fmt::format("{}/{}", dir, kTemplateMemoryPart);
  const base::UniqueFd fd(open(memory.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd.valid()) return base::ErrnoStatus(errno, "make " + memory);
  return SaveMemoryFile(kRamFd, fd.get()).status();
}

}  // namespace

std::string Supervisor::ConsoleText() const {
  std::string text;
  for (uint64_t from = 0;;) {
    const ConsoleData piece = vmm_->Console(from);
    text += piece.data;
    from = piece.begin + piece.data.size();
    if (from >= piece.end) return text;
  }
}

absl::Status Supervisor::SetPaused(bool paused) {
  if (paused == paused_) return absl::OkStatus();
  if (paused) {
    // One that does not answer stands still as well; it stays in memory.
    if (const absl::Status held = agent_ ? Hold() : absl::OkStatus(); !held.ok())
      base::LogWarn(std::string(held.message()));
    if (absl::Status status = vmm_->Pause(); !status.ok()) return GoOn(), status;
    paused_ = true;
    // The memory of a PC's screen is none of the parts that are saved, nor is all of a machine that
    // booted by itself.
    if (!held_ || static_cast<Board>(config_.board) != Board::kMicrovm ||
        !FromTemplate(static_cast<Mode>(config_.mode))) {
      return absl::OkStatus();
    }
    if (absl::Status status = Suspend(); !status.ok())
      base::LogWarn(fmt::format("the paused machine stays in memory: {}", status.message()));
    return absl::OkStatus();
  }
  if (suspended_) RETURN_IF_ERROR(Wake());
  RETURN_IF_ERROR(vmm_->Resume());
  paused_ = false;
  GoOn();
  if (!agent_) return absl::OkStatus();
  // Its clock stood still meanwhile.
  ++renewals_;
  SendRenew(/*clock_only=*/true);
  return absl::OkStatus();
}

absl::Status Supervisor::Hold() {
  if (held_) return absl::OkStatus();
  mux_->Send(GuestFrame(GuestMessage::kHold));
  mux_->Hold();
  ++holds_;
  holding_ = true;
  const absl::Cleanup over = [this] { holding_ = false; };
  const int64_t deadline = base::MonotonicMicros() + kHoldMs * 1000;
  while (!held_) {
    const int64_t left_us = deadline - base::MonotonicMicros();
    absl::Status status = StepMux();
    if (status.ok() && !held_ && left_us <= 0)
      status = absl::UnavailableError(fmt::format("the guest did not answer in {} ms", kHoldMs));
    if (!status.ok()) return GoOn(), status;
    if (held_) break;
    std::vector<pollfd> fds;
    mux_->AddPollFds(&fds);
    vmm_->AddPollFds(&fds);
    poll(fds.data(), fds.size(), static_cast<int>(left_us / 1000 + 1));
    vmm_->Attend();
  }
  return absl::OkStatus();
}

void Supervisor::GoOn() {
  if (!agent_) return;
  mux_->GoOn();
  mux_->Send(GuestFrame(GuestMessage::kGoOn));
  held_ = false;
}

absl::Status Supervisor::Suspend() {
  RETURN_IF_ERROR(Renewed(kSuspendedDir));
  RETURN_IF_ERROR(vmm_->SaveTo(kSuspendedDir));
  vmm_->End();
  mux_->SetPort({});
  suspended_ = true;
  return absl::OkStatus();
}

absl::Status Supervisor::Wake() {
  auto wake = [this]() -> absl::Status {
    RETURN_IF_ERROR(vmm_->Launch(config_));
    return vmm_->LoadFrom(kSuspendedDir);
  };
  if (absl::Status woken = wake(); !woken.ok()) {
    // It is still there: the next attempt may have more luck.
    vmm_->End();
    return woken;
  }
  mux_->SetPort(agent::Fd(vmm_->TakePort().Release()));
  suspended_ = false;
  std::error_code ignored;
  std::filesystem::remove_all(kSuspendedDir, ignored);
  return absl::OkStatus();
}

absl::Status Supervisor::Snapshot(const SnapshotRequest& request) {
  if (!FromTemplate(static_cast<Mode>(config_.mode)))
    return absl::UnimplementedError("this machine is not one that continues a template");
  RETURN_IF_ERROR(Renewed(kSnapshotDir));
  const std::string dir = kSnapshotDir;
  if (request.with_template != 0) RETURN_IF_ERROR(SaveTemplate(dir));
  RETURN_IF_ERROR(base::WriteFileAtomic(fmt::format("{}/{}", dir, kConsolePart), ConsoleText()));
  if (suspended_) {
    for (const char* const part : {kMemoryPart, kDevicesPart}) {
      std::error_code error;
      std::filesystem::create_hard_link(fmt::format("{}/{}", kSuspendedDir, part),
                                        fmt::format("{}/{}", dir, part), error);
      if (error) return base::ErrnoStatus(error.value(), fmt::format("link {}", part));
    }
    return absl::OkStatus();
  }
  const bool was_paused = paused_;
  if (was_paused && !held_) {
    return absl::UnavailableError(
        "the guest did not answer when it was paused: resume the sandbox first");
  }
  if (!was_paused) {
    RETURN_IF_ERROR(Hold());
    if (absl::Status status = vmm_->Pause(); !status.ok()) return GoOn(), status;
    paused_ = true;
  }
  const absl::Status saved = vmm_->SaveTo(dir);
  if (was_paused) return saved;
  RETURN_IF_ERROR(SetPaused(false));
  return saved;
}

}  // namespace reprise::sandboxd::microvm
