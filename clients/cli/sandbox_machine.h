// The verbs of `reprise sandbox` for virtual machines: console, screen, keyboard and pointer.
#pragma once

#include "absl/status/statusor.h"
#include "clients/cli/context.h"
#include "clients/cli/sandbox_verbs.h"

namespace reprise::cli {

// Prints what the console said, after typing `typed`; with `follow`, for ever.
absl::StatusOr<int> ShowConsole(const Context& context, const SandboxOptions& options);
// Writes the screen to the file `to`.
absl::StatusOr<int> TakeScreenshot(const Context& context, const SandboxOptions& options);
// Does the actions `words`, in order.
absl::StatusOr<int> SendInput(const Context& context, const SandboxOptions& options);

}  // namespace reprise::cli
