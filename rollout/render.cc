#include "rollout/render.h"

#include <fmt/format.h>

#include "rollout/text.h"

namespace reprise::rollout {
namespace {

// The last line for everything but an exit with code 0.
std::string EndLine(const sandbox::Result& result) {
  switch (result.outcome()) {
    case sandbox::OUTCOME_EXITED:
      return fmt::format("[exit code {}]", result.exit_code());
    case sandbox::OUTCOME_SIGNALED:
      return fmt::format("[killed by signal {}]", result.signal());
    case sandbox::OUTCOME_TIMED_OUT:
      return "[timed out]";
    case sandbox::OUTCOME_MEMORY_EXCEEDED:
      return "[out of memory]";
    case sandbox::OUTCOME_OUTPUT_TRUNCATED:
      return "[stopped: too much output]";
    case sandbox::OUTCOME_POLICY_VIOLATION:
      return "[stopped: forbidden system call]";
    case sandbox::OUTCOME_CANCELLED:
      return "[cancelled]";
    default:
      return "[the sandbox failed]";
  }
}

}  // namespace

Rendered RenderResult(const CallOutput& output, uint64_t max_bytes) {
  const sandbox::Result& result = output.result;
  bool clean = result.outcome() == sandbox::OUTCOME_EXITED && result.exit_code() == 0;
  std::string text = ToUtf8(output.stdout_data);
  if (!clean) text += ToUtf8(output.stderr_data);
  if (clean && text.ends_with('\n')) text.pop_back();
  Rendered rendered;
  rendered.cut = result.truncated() || text.size() > max_bytes;
  rendered.text = CutMiddle(text, max_bytes);
  if (result.truncated()) rendered.text = "[earlier output left out]\n" + rendered.text;
  if (!clean) {
    if (!rendered.text.empty() && !rendered.text.ends_with('\n')) rendered.text += '\n';
    rendered.text += EndLine(result);
  }
  return rendered;
}

std::string RenderError(std::string_view error) { return fmt::format("error: {}", ToUtf8(error)); }

bool IsPlatformFailure(sandbox::Outcome outcome) {
  return outcome == sandbox::OUTCOME_SETUP_FAILED || outcome == sandbox::OUTCOME_SANDBOX_LOST ||
         outcome == sandbox::OUTCOME_INTERRUPTED;
}

}  // namespace reprise::rollout
