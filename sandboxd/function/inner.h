// The inside of a worker: init of its pid namespace. It builds the private parts of the root, waits
// for the job, lays in files and binds, starts the command with every privilege given up, and tells
// how it ended.
#pragma once

#include <linux/filter.h>

#include <string>
#include <vector>

#include "sandboxd/agent/os.h"
#include "sandboxd/agent/protocol.h"

namespace reprise::sandboxd::function {

// Over the link between supervisor and inside, a stream socket: the supervisor sends one byte when
// the user mapping is in place; the inside answers kInnerReady, or a message and closes; then the
// supervisor sends the job. The command's first act is one byte, from whose credentials the
// supervisor learns its pid.
inline constexpr char kInnerGo = 'g';
inline constexpr char kInnerReady = 'r';
inline constexpr char kInnerLeader = 'l';
// Comes before the leader's byte for a job on a terminal, with the terminal's master; or a message
// comes in its place.
inline constexpr char kInnerTerminal = 't';

// The job's descriptors, in this order, before one mount per bind. A job on a terminal is sent the
// first only.
enum JobFd { kJobReport, kJobStdin, kJobStdout, kJobStderr, kJobFds };
inline constexpr size_t kJobBindsMax = 64;

// Sends the job. False with errno set.
bool SendJob(int link, const agent::Start& start, const std::string& files,
             const std::vector<int>& fds);

// Runs in the new namespaces, as the first process of them; every descriptor but `link` is closed.
[[noreturn]] void RunInner(agent::Fd link, const std::string& root,
                           const std::vector<sock_filter>& filter, bool memory_by_cgroup,
                           bool pids_by_cgroup);

}  // namespace reprise::sandboxd::function
