// What every command gets: how the program was called, whether to print JSON, and where to leave
// what is to be done once all arguments are known. No CLI11 here, so that most files compile fast.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::cli {

inline constexpr int kExitDone = 0, kExitFailed = 1, kExitUsage = 2;

struct Context {
  std::string program;  // as it was called, for lines to type next
  bool json = false;    // stdout carries JSON and nothing else
  // The command that was chosen: returns its exit code, or an error that main prints. Set while the
  // arguments are parsed, run afterwards.
  std::function<absl::StatusOr<int>()> action;
};

// An error in how the command was called: exit code 2 and a pointer to --help.
absl::Status UsageError(std::string_view message);
bool IsUsageError(const absl::Status& status);

// The text of a status, in a type that fmt and std take.
std::string Message(const absl::Status& status);

}  // namespace reprise::cli
