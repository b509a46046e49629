// One command as the agent keeps it: its pipes, what the daemon has not acknowledged yet (at most 1
// MiB a stream, then the command blocks), its limits and its end. It lives on without a connection,
// until it is released.
#pragma once

#include <poll.h>

#include <optional>
#include <string>
#include <vector>

#include "sandboxd/agent/protocol.h"
#include "sandboxd/agent/spawn.h"

namespace reprise::sandboxd::agent {

// How commands are started and ended where an owner runs them. The default is the one of a
// container: a fork of the agent under a keeper.
class Launcher {
 public:
  virtual ~Launcher() = default;
  // `files` is an encoded InputFiles, or empty. False with `why` when nothing was started.
  virtual bool Launch(const Start& start, const Identity& identity,
                      const std::vector<std::string>& env, const std::string& files,
                      SpawnedCommand* command, std::string* why);
  // One round of killing everything below the keeper.
  virtual void KillAll(pid_t keeper) { KillBelow(keeper); }
  // The command's pid, in this process's pid namespace, from the one in its report.
  virtual pid_t LeaderPid(pid_t reported) { return reported; }
  // The command itself ended (its report is in).
  virtual void CommandEnded(pid_t keeper) {}
  // The last look at how it ended: a signal that stands for a limit becomes that limit's end.
  virtual void Judge(const Start& start, End* end);
};

class Call {
 public:
  Call(Start start, Launcher* launcher) : start_(std::move(start)), launcher_(launcher) {}

  // False with `why`: nothing was started, and the call is no call.
  bool Run(const Identity& identity, const std::vector<std::string>& env, std::string stdin_data,
           const std::string& files, std::string* why);

  const std::string& id() const { return start_.call_id; }
  uint64_t tag() const { return start_.tag; }
  pid_t keeper() const { return command_.keeper; }
  bool ended() const { return end_.has_value(); }
  bool gone() const { return ended() && keeper_gone_; }  // no process is left either

  void AddPollFds(std::vector<pollfd>* fds) const;
  // Reads, writes, and moves the state on; never blocks. `now_ms` is monotonic.
  void Step(int64_t now_ms);
  // When Step must run next even if nothing happens; -1 for never.
  int64_t NextDeadlineMs(int64_t now_ms) const;

  // The connection may be sent what lies at `offset` of a stream; "" when there is nothing (yet).
  std::string OutputAt(int stream, uint64_t offset) const;
  // Set once, when the end and all output before it may be sent.
  const std::optional<End>& end() const { return end_; }
  uint64_t produced(int stream) const {
    return streams_[stream].base + streams_[stream].data.size();
  }
  uint64_t acknowledged(int stream) const { return streams_[stream].base; }
  void Acknowledge(int stream, uint64_t upto);

  bool StdinHasRoom() const { return stdin_.size() < kStdinQueueBytesMax; }
  void WriteStdin(std::string_view data, bool eof);
  // ENOTTY for a call without a terminal; an errno.
  int Resize(uint16_t rows, uint16_t columns);
  // To the command's process group, as soon as there is one; an errno.
  int Signal(int signal);
  void Kill(EndKind why);
  void KeeperGone() { keeper_gone_ = true; }

 private:
  static constexpr size_t kStdinQueueBytesMax = 1 << 20;

  struct Stream {
    Fd fd;
    uint64_t base = 0;  // offset of data[0]: everything before is acknowledged
    std::string data;
    std::optional<uint64_t> left;  // once the command ended: bytes that were in the pipe then, or
                                   // that a terminal can hold
    bool closed = false;           // nothing more is taken from it
  };

  void ReadReport();
  void ReadStream(Stream& stream);
  void FeedStdin();
  void MaybeEnd();
  bool Wanted(const Stream& stream) const;

  Start start_;
  Launcher* const launcher_;
  SpawnedCommand command_;
  Stream streams_[2];
  std::string stdin_;
  bool stdin_eof_ = false;
  bool mid_line_ = false;   // the last byte written did not end a line
  bool end_typed_ = false;  // a terminal was given its end-of-file character
  int64_t started_us_ = 0, deadline_ms_ = -1;
  pid_t leader_ = 0;
  uint64_t waiting_signals_ = 0;  // bits: sent before the command's process was known
  std::optional<Report> failed_, report_;
  std::optional<EndKind> killed_;
  int64_t ended_us_ = 0;
  bool keeper_gone_ = false;
  std::optional<End> end_;
};

}  // namespace reprise::sandboxd::agent
