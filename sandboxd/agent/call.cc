#include "sandboxd/agent/call.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include <algorithm>

#include "sandboxd/agent/terminal.h"

namespace reprise::sandboxd::agent {
namespace {

constexpr int64_t kKillRoundMs = 5;  // between two rounds of killing what is left
// More than the kernel keeps of what was written to a terminal.
constexpr uint64_t kTerminalBytesMax = 256 << 10;

}  // namespace

bool Launcher::Launch(const Start& start, const Identity& identity,
                      const std::vector<std::string>& env, const std::string& files,
                      SpawnedCommand* command, std::string* why) {
  if (!files.empty()) {
    *why = "input files are for the function tier; write them into this sandbox instead";
    return false;
  }
  return Spawn(start, identity, env, command, why);
}

void Launcher::Judge(const Start& start, End* end) {
  if (static_cast<EndKind>(end->kind) != EndKind::kSignaled) return;
  const bool cpu_used =
      start.cpu_seconds > 0 && end->cpu_us >= static_cast<int64_t>(start.cpu_seconds) * 1'000'000;
  if (end->signal == SIGSYS) end->kind = static_cast<uint8_t>(EndKind::kPolicyViolation);
  if (end->signal == SIGXCPU || (end->signal == SIGKILL && cpu_used)) {
    end->kind = static_cast<uint8_t>(EndKind::kTimedOut);
    end->message = "killed after its CPU limit of " + std::to_string(start.cpu_seconds) + " s";
  }
  if (end->signal == SIGXFSZ) {
    end->message = "ended by SIGXFSZ: a file reached its limit of " +
                   std::to_string(start.file_bytes) + " bytes";
  }
}

bool Call::Run(const Identity& identity, const std::vector<std::string>& env,
               std::string stdin_data, const std::string& files, std::string* why) {
  started_us_ = NowUs();
  if (!launcher_->Launch(start_, identity, env, files, &command_, why)) return false;
  streams_[0].fd = std::move(command_.stdout_fd);
  streams_[1].fd = std::move(command_.stderr_fd);
  streams_[1].closed = start_.on_terminal();
  stdin_ = std::move(stdin_data);
  stdin_eof_ = start_.stdin_open == 0;
  if (start_.timeout_ms > 0)
    deadline_ms_ = started_us_ / 1000 + static_cast<int64_t>(start_.timeout_ms);
  FeedStdin();
  return true;
}

bool Call::Wanted(const Stream& stream) const {
  if (!stream.fd.valid()) return false;
  return stream.closed || stream.data.size() < kUnackedBytesMax;
}

void Call::AddPollFds(std::vector<pollfd>* fds) const {
  if (command_.report.valid()) fds->push_back({command_.report.get(), POLLIN, 0});
  if (command_.stdin_fd.valid() && !stdin_.empty())
    fds->push_back({command_.stdin_fd.get(), POLLOUT, 0});
  for (const Stream& stream : streams_) {
    if (Wanted(stream)) fds->push_back({stream.fd.get(), POLLIN, 0});
  }
}

int64_t Call::NextDeadlineMs(int64_t now_ms) const {
  if (killed_ && !keeper_gone_) return now_ms + kKillRoundMs;
  return ended() || killed_ ? -1 : deadline_ms_;
}

void Call::Step(int64_t now_ms) {
  FeedStdin();
  ReadReport();
  for (Stream& stream : streams_) {
    if (Wanted(stream)) ReadStream(stream);
  }
  if (!ended() && !report_ && deadline_ms_ >= 0 && now_ms >= deadline_ms_) Kill(EndKind::kTimedOut);
  if (killed_ && !keeper_gone_) launcher_->KillAll(command_.keeper);
  MaybeEnd();
}

void Call::ReadReport() {
  Report report;
  while (command_.report.valid()) {
    const ssize_t count = read(command_.report.get(), &report, sizeof(report));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) return;
    if (count != sizeof(report)) {
      command_.report.Reset();
      return;
    }
    if (report.kind == Report::kLeader) {
      leader_ = launcher_->LeaderPid(report.value);
      for (int signal = 1; signal < 64; ++signal) {
        if ((waiting_signals_ >> signal & 1) != 0) Signal(signal);
      }
      waiting_signals_ = 0;
    }
    if (report.kind == Report::kStartFailed) failed_ = report;
    if (report.kind != Report::kEnded) continue;
    report_ = report;
    ended_us_ = NowUs();
    leader_ = 0;
    command_.stdin_fd.Reset();
    // What the command wrote is in the pipes now; what its background processes write later is not
    // its output.
    for (Stream& stream : streams_) {
      int bytes = 0;
      if (start_.on_terminal()) {  // it is read until it is empty: the kernel does not count it
        stream.left = kTerminalBytesMax;
        continue;
      }
      if (stream.fd.valid()) ioctl(stream.fd.get(), FIONREAD, &bytes);
      stream.left = static_cast<uint64_t>(bytes);
      if (*stream.left == 0) stream.closed = true;
    }
    launcher_->CommandEnded(command_.keeper);
  }
}

void Call::ReadStream(Stream& stream) {
  char buffer[kDataBytesMax];
  // Some rounds a step, so that one call cannot keep the agent from the others.
  for (int round = 0; round < 8 && Wanted(stream); ++round) {
    size_t room = sizeof(buffer);
    if (!stream.closed) room = std::min<size_t>(room, kUnackedBytesMax - stream.data.size());
    if (stream.left && !stream.closed) room = std::min<size_t>(room, *stream.left);
    const ssize_t count = read(stream.fd.get(), buffer, room);
    if (count < 0 && errno == EINTR) continue;
    const bool empty = count < 0 && errno == EAGAIN;
    // A terminal is hung up with its command: what goes on in the background learns of it.
    const bool hang_up = start_.on_terminal() && stream.left && (empty || stream.closed);
    if (empty && !hang_up) return;
    if (count <= 0 || hang_up) {
      stream.fd.Reset();
      if (start_.on_terminal()) command_.stdin_fd.Reset();  // the same terminal
      stream.closed = true;
      return;
    }
    if (stream.closed) continue;  // a background process writes on: nobody listens
    size_t take = static_cast<size_t>(count);
    if (start_.output_bytes_max > 0) {
      const uint64_t total = produced(0) + produced(1);
      const uint64_t allowed = start_.output_bytes_max - std::min(start_.output_bytes_max, total);
      if (take > allowed) {
        take = static_cast<size_t>(allowed);
        Kill(EndKind::kOutputLimit);
        for (Stream& each : streams_) each.closed = true;
      }
    }
    stream.data.append(buffer, take);
    if (stream.left) {
      *stream.left -= static_cast<size_t>(count);
      if (*stream.left == 0) stream.closed = true;
    }
  }
}

void Call::FeedStdin() {
  while (command_.stdin_fd.valid() && !stdin_.empty()) {
    const ssize_t count =
        write(command_.stdin_fd.get(), stdin_.data(), std::min<size_t>(stdin_.size(), 64 << 10));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) return;
    if (count < 0) {  // the command closed its end
      command_.stdin_fd.Reset();
      break;
    }
    mid_line_ = count > 0 && stdin_[static_cast<size_t>(count) - 1] != '\n';
    stdin_.erase(0, static_cast<size_t>(count));
  }
  if (!command_.stdin_fd.valid()) stdin_.clear();
  if (!stdin_.empty() || !stdin_eof_ || !command_.stdin_fd.valid()) return;
  if (start_.on_terminal() && !end_typed_) {
    end_typed_ = true;
    stdin_ = EndOfInput(command_.stdin_fd, mid_line_);
    return FeedStdin();
  }
  command_.stdin_fd.Reset();
}

void Call::WriteStdin(std::string_view data, bool eof) {
  if (stdin_eof_ || !command_.stdin_fd.valid()) return;
  stdin_ += data;
  stdin_eof_ = eof;
  FeedStdin();
}

int Call::Resize(uint16_t rows, uint16_t columns) {
  if (!start_.on_terminal()) return ENOTTY;
  if (!streams_[0].fd.valid()) return ESRCH;  // hung up
  return ResizeTerminal(streams_[0].fd, rows, columns);
}

std::string Call::OutputAt(int stream, uint64_t offset) const {
  const Stream& from = streams_[stream];
  if (offset < from.base || offset >= produced(stream)) return "";
  return from.data.substr(offset - from.base, kDataBytesMax);
}

void Call::Acknowledge(int stream, uint64_t upto) {
  Stream& of = streams_[stream];
  if (upto <= of.base || upto > produced(stream)) return;
  of.data.erase(0, upto - of.base);
  of.base = upto;
}

int Call::Signal(int signal) {
  if (leader_ <= 0) {
    if (ended() || report_ || failed_ || signal < 1 || signal >= 64) return ESRCH;
    waiting_signals_ |= uint64_t{1} << signal;  // it is being started
    return 0;
  }
  // Just after its start the command may not lead its group yet.
  if (kill(-leader_, signal) == 0 || kill(leader_, signal) == 0) return 0;
  return errno;
}

void Call::Kill(EndKind why) {
  if (ended() || report_ || killed_) return;
  killed_ = why;
  launcher_->KillAll(command_.keeper);
}

void Call::MaybeEnd() {
  if (ended()) return;
  // A killed call has ended when nothing of it is left; any other with its command, once its output
  // is taken.
  const bool over = killed_ ? keeper_gone_ : (report_ && streams_[0].closed && streams_[1].closed);
  if (!over && !(keeper_gone_ && !report_ && !command_.report.valid())) return;
  if (killed_ && (!streams_[0].closed || !streams_[1].closed) && report_)
    return;  // its last words first
  End end;
  end.wall_us = (ended_us_ != 0 ? ended_us_ : NowUs()) - started_us_;
  end.stdout_bytes = produced(0);
  end.stderr_bytes = produced(1);
  if (report_) {
    end.cpu_us = report_->cpu_us;
    end.memory_peak_bytes = report_->memory_peak_bytes;
    if (WIFEXITED(report_->value)) end.exit_code = WEXITSTATUS(report_->value);
    if (WIFSIGNALED(report_->value)) end.signal = WTERMSIG(report_->value);
  }
  if (failed_) {
    end.kind = static_cast<uint8_t>(EndKind::kSetupFailed);
    end.exit_code = 0;
    const uint32_t step = std::min<uint32_t>(failed_->step, std::size(kStartSteps) - 1);
    end.message = "cannot start " + start_.argv[0].substr(0, 200) + ": failed to " +
                  kStartSteps[step] + ": " + strerror(failed_->value);
  } else if (killed_) {
    end.kind = static_cast<uint8_t>(*killed_);
    end.signal = SIGKILL;
    end.exit_code = 0;
  } else if (!report_) {
    end.kind = static_cast<uint8_t>(EndKind::kSignaled);
    end.signal = SIGKILL;
    end.message = "the process that watches the command was killed";
  } else {
    end.kind = static_cast<uint8_t>(end.signal != 0 ? EndKind::kSignaled : EndKind::kExited);
  }
  launcher_->Judge(start_, &end);
  end_ = std::move(end);
}

}  // namespace reprise::sandboxd::agent
