// `reprise sandbox exec` and `logs CALL`: a call whose output goes to this terminal as it comes.
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "base/fd.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/output.h"
#include "clients/cli/sandbox_verbs.h"
#include "clients/cli/wire_json.h"

namespace reprise::cli {
namespace {

constexpr size_t kStdinPiece = 64 << 10;

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

// Feeds this process's standard input to a call, from its start to its end.
class StdinFeeder {
 public:
  StdinFeeder(SandboxApi* api, std::string call_id)
      : api_(api), call_id_(std::move(call_id)), wake_(::eventfd(0, EFD_CLOEXEC)) {}
  ~StdinFeeder() {
    if (!thread_.joinable()) return;
    ::eventfd_write(wake_.get(), 1);
    thread_.join();
  }
  void Start() {
    if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
  }

 private:
  void Run() {
    std::string piece(kStdinPiece, '\0');
    while (true) {
      pollfd ready[] = {{STDIN_FILENO, POLLIN, 0}, {wake_.get(), POLLIN, 0}};
      if (::poll(ready, 2, -1) < 0) continue;
      if (ready[1].revents != 0) return;
      ssize_t got = ::read(STDIN_FILENO, piece.data(), piece.size());
      if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      sandbox_wire::WriteStdinRequest request;
      request.set_call_id(call_id_);
      request.set_eof(got <= 0);
      if (got > 0) request.set_data(piece.data(), static_cast<size_t>(got));
      // Refused once the call has ended: nobody reads it.
      if (!api_->WriteStdin(request).ok() || got <= 0) return;
    }
  }

  SandboxApi* const api_;
  const std::string call_id_;
  base::UniqueFd wake_;  // eventfd: the call has ended
  std::thread thread_;
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

absl::StatusOr<int> ExecInSandbox(const Context& context, const SandboxOptions& options) {
  sandbox_wire::ExecuteRequest request = options.request;
  request.set_sandbox_id(options.id);
  if (options.words.empty()) return UsageError("no command: type it after the sandbox's id");
  request.mutable_argv()->Assign(options.words.begin(), options.words.end());
  request.set_call_id(options.call_id.empty() ? fmt::format("call-{}", base::RandomHex(8))
                                              : options.call_id);
  request.set_stdin_open(options.forward_stdin);
  RETURN_IF_ERROR(AddEnv(options.env, false, request.mutable_env()));
  RETURN_IF_ERROR(AddEnv(options.secrets, true, request.mutable_env()));
  Interrupt interrupt;
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  // Ctrl-C ends the call, which then has the outcome CANCELLED; a second one ends this command.
  interrupt.Watch([&] { api->Cancel(request.call_id()).IgnoreError(); });
  Sink sink(context.json);
  StdinFeeder feeder(api.get(), request.call_id());
  ASSIGN_OR_RETURN(sandbox_wire::Result result,
                   api->Execute(request, [&](const sandbox_wire::ExecuteEvent& event) {
                     if (event.has_output()) sink.Take(event.output());
                     bool live = event.has_started() && !event.started().replayed();
                     if (live && options.forward_stdin) feeder.Start();
                   }));
  return Finish(context, request.call_id(), result, sink);
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
