// QEMU's control protocol: one JSON object a line, commands answered in order, events between them.
// Answers are bounded and every wait has a deadline: a machine's monitor may be its guest's prey.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fd.h"

namespace reprise::sandboxd::microvm {

inline constexpr int64_t kQmpAnswerMs = 30'000;

class Qmp {
 public:
  explicit Qmp(base::UniqueFd fd) : fd_(std::move(fd)) {}

  // Takes the greeting and agrees on capabilities.
  absl::Status Start(int64_t timeout_ms);
  // `arguments` is a JSON object or "". Returns the "return" member as JSON. With `pass`, that
  // descriptor travels with the command.
  absl::StatusOr<std::string> Command(const std::string& name, const std::string& arguments = "",
                                      int pass = -1, int64_t timeout_ms = kQmpAnswerMs);
  // Drops events that have come; never blocks.
  void DropEvents();
  int fd() const { return fd_.get(); }

 private:
  absl::StatusOr<std::string> ReadLine(int64_t deadline_us);

  base::UniqueFd fd_;
  std::string in_;
};

}  // namespace reprise::sandboxd::microvm
