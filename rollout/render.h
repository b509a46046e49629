// The text that the model is shown as the result of a tool call (docs/jobs.md, "What the model
// sees").
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "rollout/sandboxes.h"

namespace reprise::rollout {

struct Rendered {
  std::string text;  // valid UTF-8
  bool cut = false;  // some output is not in it
};

// Output of at most about `max_bytes`.
Rendered RenderResult(const CallOutput& output, uint64_t max_bytes);

// The same for a call that no sandbox ran.
std::string RenderError(std::string_view error);

// True for the outcomes that say nothing about the program: the platform failed, and nobody may be
// judged by it.
bool IsPlatformFailure(sandbox::Outcome outcome);

}  // namespace reprise::rollout
