// `reprise sandbox exec`, `shell` and `logs CALL`: a call whose output goes to this terminal as it
// comes.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/fd.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/local_terminal.h"
#include "clients/cli/output.h"
#include "clients/cli/sandbox_input.h"
#include "clients/cli/sandbox_verbs.h"
#include "clients/cli/wire_json.h"

namespace reprise::cli {
namespace {

// Of a shell that names none: as long as anyone sits before it.
constexpr uint64_t kShellTimeoutMs = 7ull * 24 * 3600 * 1000;

// Where output goes: to this process's streams, or gathered for the JSON object.
class Sink {
 public:
  explicit Sink(bool gather) : gather_(gather) {}

  void Take(const sandbox_wire::Output& output) {
    bool err = output.stream() == sandbox_wire::STREAM_STDERR;
    if (gather_) {
      (err ? err_ : out_) += output.data();
      return;
    }
    // Who closed our stdout wants no more of it; the call goes on.
    base::WriteAll(err ? STDERR_FILENO : STDOUT_FILENO, output.data(), "output").IgnoreError();
  }
  void PutInto(Json* object) const {
    PutBytes(object, "stdout", out_);
    PutBytes(object, "stderr", err_);
  }

 private:
  const bool gather_;
  std::string out_, err_;
};

int Finish(const Context& context, const std::string& call_id, const sandbox_wire::Result& result,
           const Sink& sink) {
  bool exited = result.outcome() == sandbox_wire::OUTCOME_EXITED;
  if (context.json) {
    Json out = ToJson(result);
    out["call_id"] = call_id;
    sink.PutInto(&out);
    PrintJson(out);
  } else if (!exited) {
    fmt::print(stderr, "reprise: the call ended without an exit code: {}\n", Ending(result));
  }
  return exited ? result.exit_code() : kExitFailed;
}

}  // namespace

std::string Ending(const sandbox_wire::Result& result) {
  std::string text = OutcomeName(result.outcome());
  if (result.outcome() == sandbox_wire::OUTCOME_SIGNALED)
    text += fmt::format(" by signal {}", result.signal());
  if (!result.message().empty() && result.message() != text)
    text += fmt::format(": {}", result.message());
  return text;
}

namespace {

absl::StatusOr<int> Execute(const Context& context, const SandboxOptions& options,
                            sandbox_wire::ExecuteRequest request) {
  request.set_sandbox_id(options.id);
  request.set_call_id(options.call_id.empty() ? fmt::format("call-{}", base::RandomHex(8))
                                              : options.call_id);
  request.set_stdin_open(options.forward_stdin);
  RETURN_IF_ERROR(AddEnv(options.env, false, request.mutable_env()));
  RETURN_IF_ERROR(AddEnv(options.secrets, true, request.mutable_env()));
  if (options.on_terminal) {
    const WindowSize size = LocalTerminal::Size();
    request.mutable_pty()->set_rows(size.rows);
    request.mutable_pty()->set_columns(size.columns);
    if (const char* term = std::getenv("TERM"); term != nullptr)
      request.mutable_pty()->set_term(term);
  }
  std::unique_ptr<SandboxApi> api;  // outlives those below, which use it
  Interrupt interrupt;
  LocalTerminal terminal;
  // Before the connection, which starts threads.
  CallInput input(&api, request.call_id(), options.forward_stdin, options.on_terminal);
  ASSIGN_OR_RETURN(api, SandboxApi::Connect(options.target));
  // Ctrl-C ends the call, which then has the outcome CANCELLED; a second one ends this command.
  interrupt.Watch([&] {
    terminal.Restore();
    api->Cancel(request.call_id()).IgnoreError();
  });
  Sink sink(context.json);
  absl::StatusOr<sandbox_wire::Result> result =
      api->Execute(request, [&](const sandbox_wire::ExecuteEvent& event) {
        if (event.has_output()) sink.Take(event.output());
        if (!event.has_started() || event.started().replayed()) return;
        if (options.on_terminal && options.forward_stdin) terminal.MakeRaw();
        input.Start();
      });
  terminal.Restore();
  RETURN_IF_ERROR(result.status());
  return Finish(context, request.call_id(), *result, sink);
}

}  // namespace

absl::StatusOr<int> ExecInSandbox(const Context& context, const SandboxOptions& options) {
  sandbox_wire::ExecuteRequest request = options.request;
  if (options.words.empty()) return UsageError("no command: type it after the sandbox's id");
  request.mutable_argv()->Assign(options.words.begin(), options.words.end());
  return Execute(context, options, std::move(request));
}

absl::StatusOr<int> ShellInSandbox(const Context& context, const SandboxOptions& options) {
  SandboxOptions shell = options;
  shell.on_terminal = shell.forward_stdin = true;
  sandbox_wire::ExecuteRequest request = options.request;
  request.mutable_argv()->Assign(options.words.begin(), options.words.end());
  if (options.words.empty()) {
    for (const char* word : {"sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"})
      request.add_argv(word);
  }
  if (request.limits().timeout_ms() == 0) request.mutable_limits()->set_timeout_ms(kShellTimeoutMs);
  return Execute(context, shell, std::move(request));
}

absl::StatusOr<int> ShowCallOutput(const Context& context, const SandboxOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  Sink sink(context.json);
  ASSIGN_OR_RETURN(sandbox_wire::Result result,
                   api->Attach(options.call_id, [&](const sandbox_wire::ExecuteEvent& event) {
                     if (event.has_output()) sink.Take(event.output());
                   }));
  Finish(context, options.call_id, result, sink);
  return kExitDone;
}

}  // namespace reprise::cli
