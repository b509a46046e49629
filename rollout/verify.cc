#include "rollout/verify.h"

#include <fmt/format.h>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_replace.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "rollout/render.h"
#include "rollout/record.h"
#include "rollout/text.h"

namespace reprise::rollout {
namespace {

using Verification = ::reprise::rollout::v1::Verification;

absl::StatusOr<sandbox::ExecuteRequest> RequestOf(const Task& task,
                                                  const replay::journal::CallIssued& issued) {
  for (const Tool* tool : task.tools) {
    if (ToUtf8(tool->name()) != issued.tool()) continue;
    ASSIGN_OR_RETURN(Tool::Command command, tool->Bind(issued.arguments_json()));
    sandbox::ExecuteRequest request;
    for (const std::string& arg : command.argv) request.add_argv(arg);
    request.set_stdin(command.stdin_text);
    *request.mutable_limits() = tool->limits();
    return request;
  }
  return absl::DataLossError(fmt::format("call {} is of tool \"{}\", which its task does not have",
                                         issued.call_id(), issued.tool()));
}

void Compare(const replay::journal::CallDone& stored, const CallOutput& output,
             const std::string& shown, Verification* out) {
  auto differ = [out](std::string field, std::string was, std::string is) {
    if (out->diverged() || was == is) return;
    out->set_diverged(true);
    out->set_field(std::move(field));
    out->set_stored(std::move(was));
    out->set_found(std::move(is));
  };
  differ("outcome", sandbox::Outcome_Name(stored.outcome()),
         sandbox::Outcome_Name(output.result.outcome()));
  differ("exit_code", fmt::to_string(stored.exit_code()),
         fmt::to_string(output.result.exit_code()));
  differ("result", stored.result_text(), shown);
}

}  // namespace

absl::StatusOr<Verification> Verify(const replay::TrajectoryState& state, const JobRun& run,
                                    Sandboxes* sandboxes) {
  const JobSpec* spec = run.spec();
  if (spec == nullptr) {
    return absl::FailedPreconditionError(fmt::format("calls of job {} cannot be made again: {}",
                                                     run.id(), Message(run.why_no_spec())));
  }
  ASSIGN_OR_RETURN(const Task* task, TaskOf(state, *spec));
  Verification out;
  out.set_trajectory_id(state.start.trajectory_id());
  const std::string box = fmt::format("verify-{}", base::RandomHex(8));
  bool made = false;
  absl::Cleanup remove = [&] {
    if (!made) return;
    if (absl::Status status = sandboxes->Stop(box); !status.ok()) {
      base::LogWarn(fmt::format("sandbox {} is left: {}", box, Message(status)));
    }
  };
  for (const replay::CallState& call : state.calls) {
    if (!call.done || call.done->outcome() == sandbox::OUTCOME_UNSPECIFIED) {
      out.set_not_run(out.not_run() + 1);
      continue;
    }
    ASSIGN_OR_RETURN(sandbox::ExecuteRequest request, RequestOf(*task, call.issued));
    if (!made) RETURN_IF_ERROR(sandboxes->Create(box, task->sandbox));
    made = true;
    request.set_sandbox_id(box);
    request.set_call_id(fmt::format("{}/{}", box, out.verified()));
    ASSIGN_OR_RETURN(CallOutput output, sandboxes->Execute(request));
    // A call sees its own id, and may print it.
    for (std::string* data : {&output.stdout_data, &output.stderr_data}) {
      *data = absl::StrReplaceAll(*data, {{request.call_id(), call.issued.call_id()}});
    }
    Rendered rendered = RenderResult(output, static_cast<uint64_t>(spec->tool_result_bytes));
    Compare(*call.done, output, rendered.text, &out);
    if (out.diverged()) {
      out.set_call_id(call.issued.call_id());
      break;
    }
    out.set_verified(out.verified() + 1);
  }
  return out;
}

}  // namespace reprise::rollout
