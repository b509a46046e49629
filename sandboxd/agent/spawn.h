// Starts a command under a keeper: a process of the agent that is the subreaper of the command, so
// that whatever the command leaves behind stays below the keeper and can be found and killed.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "sandboxd/agent/os.h"
#include "sandboxd/agent/protocol.h"

namespace reprise::sandboxd::agent {

// What keeper and command tell through the report pipe, one write each.
struct Report {
  enum Kind : uint32_t { kStartFailed = 1, kEnded = 2, kLeader = 3 };
  uint32_t kind = 0;
  int32_t value = 0;  // kStartFailed: errno; kEnded: wait status; kLeader: pid of the command
  uint32_t step = 0;  // kStartFailed: index into kStartSteps
  int64_t cpu_us = 0;
  uint64_t memory_peak_bytes = 0;
};
inline constexpr const char* kStartSteps[] = {"fork",
                                              "set up its descriptors",
                                              "set its limits",
                                              "change to its user",
                                              "enter its working directory",
                                              "execute it",
                                              "make its sandbox"};
inline constexpr uint32_t kSandboxStep = 6;

struct SpawnedCommand {
  pid_t keeper = -1;
  // The agent's ends; not blocking. On a terminal the first two are its master and there is no
  // third.
  Fd stdin_fd, stdout_fd, stderr_fd, report;
};

// False with `why` when nothing was started.
bool Spawn(const Start& start, const Identity& identity, const std::vector<std::string>& env,
           SpawnedCommand* command, std::string* why);

// Paths at which `program` may lie, in the order to try them: itself when it has a slash, else by
// PATH of `env`.
std::vector<std::string> Candidates(const std::string& program,
                                    const std::vector<std::string>& env);
// What execve takes; valid as long as `strings`.
std::vector<char*> Pointers(const std::vector<std::string>& strings);
bool MakePipe(Fd* read_end, Fd* write_end, std::string* why);
void SetNonBlocking(const Fd& fd);
// The agent's ends of a terminal whose master this is. False with `why`.
bool TakeMaster(Fd master, SpawnedCommand* command, std::string* why);

// One round of killing everything below `keeper`: stops all, then kills all. True when nothing
// alive is left.
bool KillBelow(pid_t keeper);

}  // namespace reprise::sandboxd::agent
