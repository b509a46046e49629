#include "sandboxd/network/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <initializer_list>
#include <utility>
#include <vector>

#include "sandboxd/agent/os.h"

namespace reprise::sandboxd::network {
namespace {

using agent::Fd;

constexpr int kFirstFreeFd = 16;  // above those that a gate inherits
constexpr int kStartMs = 20'000;
constexpr int kAnswerSeconds = 10;
constexpr size_t kWordsMax = 500;

bool Refuse(std::string* why, const std::string& what) {
  *why = what + ": " + strerror(errno);
  return false;
}

// What a gate says of its start: "ok\n", or why not.
bool AwaitReady(int fd, std::string* why) {
  std::string words;
  char buffer[256];
  while (words.size() < kWordsMax) {
    pollfd item{fd, POLLIN, 0};
    const int ready = poll(&item, 1, kStartMs);
    if (ready < 0 && errno == EINTR) continue;
    const ssize_t count = ready == 1 ? read(fd, buffer, sizeof(buffer)) : 0;
    if (count <= 0) break;
    words.append(buffer, static_cast<size_t>(count));
    if (words == "ok\n") return true;
  }
  *why = words.empty() ? "the gate of the sandbox's network does not say that it started"
                       : words.substr(0, words.find('\n'));
  return false;
}

// Starts the program with these descriptors beside null ones, and waits for what it says. The first
// process only makes the second, which is nobody's child.
bool Start(const std::string& program, const std::string& argument,
           std::initializer_list<std::pair<int, int>> fds, std::string* why) {
  int pipes[2];
  if (pipe2(pipes, O_CLOEXEC) != 0) return Refuse(why, "make a pipe");
  const Fd words(pipes[0]);
  Fd status(pipes[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  for (const int standard : {0, 1, 2})
    posix_spawn_file_actions_addopen(&actions, standard, "/dev/null", O_RDWR, 0);
  std::vector<Fd> copies;  // out of the way of the descriptors that the child gets
  auto install = [&](int fd, int target) {
    copies.emplace_back(fcntl(fd, F_DUPFD_CLOEXEC, kFirstFreeFd));
    posix_spawn_file_actions_adddup2(&actions, copies.back().get(), target);
  };
  install(status.get(), kGateStatus);
  for (const auto& [fd, target] : fds) install(fd, target);
  status.Reset();
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  char* const argv[] = {const_cast<char*>(program.c_str()), const_cast<char*>(argument.c_str()),
                        nullptr};
  char* const environment[] = {nullptr};
  pid_t pid = -1;
  const int error = posix_spawn(&pid, program.c_str(), &actions, &attributes, argv, environment);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  copies.clear();
  if (error != 0) {
    errno = error;
    return Refuse(why, "start " + program);
  }
  while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  return AwaitReady(words.get(), why);
}

}  // namespace

bool LaunchGate(const GateLaunch& launch, std::string* why) {
  const Fd life(static_cast<int>(syscall(SYS_pidfd_open, launch.sandbox, 0)));
  if (!life.valid()) return Refuse(why, "the sandbox's first process");
  const std::string netns_path = "/proc/" + std::to_string(launch.sandbox) + "/ns/net";
  const Fd netns(open(netns_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!netns.valid()) return Refuse(why, netns_path);
  const Fd dir(open(launch.dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!dir.valid()) return Refuse(why, launch.dir);
  if (unlinkat(dir.get(), kGateSocket, 0) != 0 && errno != ENOENT)
    return Refuse(why, launch.dir + "/" + kGateSocket);
  const Fd policy(memfd_create("policy", MFD_CLOEXEC));
  if (!policy.valid() ||
      write(policy.get(), launch.policy.data(), launch.policy.size()) !=
          static_cast<ssize_t>(launch.policy.size()) ||
      lseek(policy.get(), 0, SEEK_SET) != 0) {
    return Refuse(why, "keep the policy of a network");
  }
  return Start(launch.program, launch.resolver,
               {{policy.get(), kGatePolicy},
                {netns.get(), kGateNetns},
                {life.get(), kGateLife},
                {dir.get(), kGateDir}},
               why);
}

bool ProbeGate(const std::string& program, std::string* why) {
  return Start(program, kGateProbe, {}, why);
}

GateAnswer AskGate(const std::string& dir, std::string_view request, std::string* answer,
                   std::string* why) {
  const std::string path = dir + "/" + kGateSocket;
  const Fd inode(open(path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  auto failed = [&](GateAnswer what) {
    Refuse(why, path);
    return what;
  };
  if (!inode.valid()) return failed(GateAnswer::kNeverThere);
  const Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const timeval limit{kAnswerSeconds, 0};
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  strncpy(address.sun_path, ("/proc/self/fd/" + std::to_string(inode.get())).c_str(),
          sizeof(address.sun_path) - 1);
  if (!fd.valid() || setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) != 0 ||
      setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) != 0 ||
      connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return failed(GateAnswer::kGone);
  }
  while (!request.empty()) {
    const ssize_t count = send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return failed(GateAnswer::kGone);
    request.remove_prefix(static_cast<size_t>(count));
  }
  shutdown(fd.get(), SHUT_WR);
  std::string text;
  char buffer[1024];
  while (text.size() < sizeof(buffer) * 4) {
    const ssize_t count = recv(fd.get(), buffer, sizeof(buffer), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return failed(GateAnswer::kGone);
    if (count == 0) break;
    text.append(buffer, static_cast<size_t>(count));
  }
  if (text.empty()) {
    *why = path + ": the gate ended";
    return GateAnswer::kGone;
  }
  if (text.substr(0, 3) != "ok\n") {
    *why = text.substr(0, text.find('\n'));
    return GateAnswer::kRefused;
  }
  if (answer != nullptr) *answer = text.substr(3);
  return GateAnswer::kOk;
}

}  // namespace reprise::sandboxd::network
