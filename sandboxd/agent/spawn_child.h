// What runs after fork: the keeper and the command before its exec. Nothing here allocates.
#pragma once

#include <sys/resource.h>

#include "sandboxd/agent/os.h"
#include "sandboxd/agent/spawn.h"

namespace reprise::sandboxd::agent {

struct ChildLimit {
  int resource = 0;
  rlimit value{};
};

// Prepared by the agent; pointers stay valid in the child.
struct ChildPlan {
  char* const* argv = nullptr;
  char* const* envp = nullptr;
  const char* const* candidates = nullptr;  // paths of the program to try, ends with nullptr
  const char* working_dir = nullptr;
  const Identity* identity = nullptr;
  const ChildLimit* limits = nullptr;
  size_t limit_count = 0;
  int stdin_fd = -1, stdout_fd = -1, stderr_fd = -1, report_fd = -1;
  bool best_effort = false;  // SCHED_IDLE, which no program without privileges can leave
  bool on_terminal = false;  // the first three are one, and become the controlling terminal
  // Where set, gives up every privilege in place of becoming `identity`. False with errno set.
  bool (*harden)(const void* context) = nullptr;
  const void* harden_context = nullptr;
};

// Becomes the command. Descriptors above 2 close at its exec.
[[noreturn]] void RunCommand(const ChildPlan& plan);

// How the command `leader` ended, from its wait status and the usage of all children.
Report EndReport(int status);
void Tell(int report_fd, const Report& report);

// The keeper's whole life.
[[noreturn]] void RunKeeper(const ChildPlan& plan);

}  // namespace reprise::sandboxd::agent
