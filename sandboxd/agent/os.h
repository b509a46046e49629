// The few operating-system things that the agent needs, without any library: an owned descriptor,
// whole-file reads, and the drop of every privilege before a command runs.
#pragma once

#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

namespace reprise::sandboxd::agent {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    Reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~Fd() { Reset(); }
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  void Reset(int fd = -1) {
    if (fd_ >= 0) close(fd_);
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

// Monotonic milliseconds and microseconds.
int64_t NowMs();
int64_t NowUs();

// At most `max` bytes of a file; "" when it cannot be read.
std::string ReadSmallFile(const std::string& path, size_t max);

// As whom a command runs.
struct Identity {
  uint32_t uid = 0, gid = 0;
  std::vector<uint32_t> groups;
  std::string home = "/";
};

// "", "name", "uid", either with ":group" or ":gid"; names come from the sandbox's /etc/passwd and
// /etc/group. False when there is no such user or it is one of the agent's own; `why` says which.
bool ResolveIdentity(const std::string& user, Identity* identity, std::string* why);

// The uid of processes that watch calls: nothing that a call runs may become it.
inline constexpr uint32_t kKeeperUid = 65535;

// Becomes `identity` without any capability. False with errno set; the caller then exits.
bool BecomeUnprivileged(const Identity& identity);

// Clears the permitted, effective and inheritable capabilities; `keep` has one bit for each that
// stays.
bool SetCapabilities(uint64_t keep);

}  // namespace reprise::sandboxd::agent
