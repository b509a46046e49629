// What the processes of all VMMs have in common: the streams to them, the end of what they say, and
// how the child becomes one: a user of its own in an empty network, with nothing of the
// supervisor's but the lock, the streams and the files, and dead as soon as the supervisor is.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/fd.h"
#include "sandboxd/microvm/vm_config.h"

namespace reprise::sandboxd::microvm {

// The end of a stream.
class Tail {
 public:
  explicit Tail(size_t bytes_max) : bytes_max_(bytes_max) {}
  base::UniqueFd fd;
  // Takes what is there; never blocks.
  void Read();
  void Append(std::string_view data);
  const std::string& text() const { return text_; }
  ConsoleData From(uint64_t from) const;

 private:
  const size_t bytes_max_;
  std::string text_;
  uint64_t end_ = 0;  // of all that was read
};

struct Pair {
  base::UniqueFd ours, theirs;
};
// Connected sockets, of which ours does not block.
absl::StatusOr<Pair> MakePair();

// The last line that says something, printable.
std::string LastLine(std::string text);

struct VmmProcess {
  const std::vector<std::string>& arguments;
  int words;                          // its stdout and stderr
  pid_t parent;                       // the supervisor
  const std::vector<int>& inherited;  // descriptors that it keeps
  int dir = -1;                       // where it works; -1: where the supervisor does
  int image = -1;                     // becomes kImageFd, if there is one
};
// In the child (of a process with one thread).
[[noreturn]] void BecomeVmm(const VmConfig& config, const VmmProcess& process);

}  // namespace reprise::sandboxd::microvm
