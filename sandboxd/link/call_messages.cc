#include "sandboxd/link/call_messages.h"

#include <fmt/format.h>
#include <signal.h>

#include "sandboxd/link/agent_connection.h"

namespace reprise::sandboxd {

agent::Start ToStart(const sandbox::ExecuteRequest& request) {
  agent::Start start;
  start.call_id = request.call_id();
  start.argv.assign(request.argv().begin(), request.argv().end());
  for (const sandbox::EnvVar& variable : request.env())
    start.env.push_back(variable.name() + "=" + variable.value());
  start.working_dir = request.working_dir();
  start.user = request.user();
  start.stdin_bytes = request.stdin().size();
  start.stdin_open = request.stdin_open() ? 1 : 0;
  start.timeout_ms = request.limits().timeout_ms();
  start.cpu_seconds = (request.limits().cpu_ms() + 999) / 1000;
  start.file_bytes = request.limits().file_bytes();
  start.open_files = request.limits().open_files();
  start.output_bytes_max = request.limits().output_bytes_max();
  return start;
}

sandbox::Result ToResult(const agent::End& end) {
  sandbox::Result result;
  result.set_exit_code(end.exit_code);
  result.set_signal(end.signal);
  result.set_stdout_bytes(end.stdout_bytes);
  result.set_stderr_bytes(end.stderr_bytes);
  result.set_message(Printable(end.message));
  result.mutable_usage()->set_wall_us(end.wall_us);
  result.mutable_usage()->set_cpu_us(end.cpu_us);
  result.mutable_usage()->set_memory_peak_bytes(end.memory_peak_bytes);
  auto set = [&](sandbox::Outcome outcome, const std::string& message) {
    result.set_outcome(outcome);
    if (!message.empty()) result.set_message(message);
  };
  switch (static_cast<agent::EndKind>(end.kind)) {
    case agent::EndKind::kExited:
      set(sandbox::OUTCOME_EXITED, "");
      break;
    case agent::EndKind::kSignaled:
      set(sandbox::OUTCOME_SIGNALED,
          result.message().empty() ? fmt::format("killed by signal {}", end.signal) : "");
      if (end.signal == SIGXCPU)
        set(sandbox::OUTCOME_TIMED_OUT, "used up its CPU time (limits.cpu_ms)");
      if (end.signal == SIGSYS)
        set(sandbox::OUTCOME_POLICY_VIOLATION, "killed by the system-call filter");
      break;
    case agent::EndKind::kTimedOut:
      set(sandbox::OUTCOME_TIMED_OUT, "ran longer than its time limit (limits.timeout_ms)");
      break;
    case agent::EndKind::kOutputLimit:
      set(sandbox::OUTCOME_OUTPUT_TRUNCATED, "wrote more than it may (limits.output_bytes_max)");
      break;
    case agent::EndKind::kSetupFailed:
      set(sandbox::OUTCOME_SETUP_FAILED, "");
      break;
    case agent::EndKind::kCancelled:
      set(sandbox::OUTCOME_CANCELLED, "cancelled by request");
      break;
    default:
      set(sandbox::OUTCOME_SANDBOX_LOST, "the agent of the sandbox broke the protocol");
  }
  return result;
}

}  // namespace reprise::sandboxd
