#include "clients/cli/sandbox_verbs.h"

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/format.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "clients/cli/output.h"
#include "clients/cli/wire_json.h"

namespace reprise::cli {
namespace {

// The command of a call, as a shell would take it.
std::string CommandOf(const google::protobuf::RepeatedPtrField<std::string>& argv) {
  std::string out;
  for (const std::string& word : argv) out += (out.empty() ? "" : " ") + ShellQuote(word);
  return out;
}

// One verb on each sandbox that was named; the first error ends it.
template <typename Verb>
absl::StatusOr<int> OnEach(const Context& context, const SandboxOptions& options,
                           const std::string& done, Verb verb) {
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  Json out = Json::array();
  for (const std::string& id : options.ids) {
    RETURN_IF_ERROR(verb(api.get(), id));
    if (!context.json) Print(fmt::format("{} {}\n", done, id));
    out.push_back({{"id", id}, {"done", done}});
  }
  if (context.json) PrintJson(out);
  return kExitDone;
}

}  // namespace

absl::StatusOr<int> ShowTiers(const Context& context, const SandboxOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  ASSIGN_OR_RETURN(sandbox_wire::ListTiersResponse tiers, api->ListTiers());
  if (context.json) {
    Json out = Json::array();
    for (const auto& tier : tiers.tiers()) out.push_back(ToJson(tier));
    PrintJson(out);
  } else {
    Print(TierTables({tiers.tiers().begin(), tiers.tiers().end()}));
  }
  return kExitDone;
}

absl::StatusOr<int> CreateSandbox(const Context& context, const SandboxOptions& options) {
  sandbox_wire::CreateRequest request;
  request.set_sandbox_id(options.id);
  sandbox_wire::SandboxSpec& spec = *request.mutable_spec();
  spec = options.spec;
  ASSIGN_OR_RETURN(sandbox_wire::Tier tier, ParseTier(options.tier));
  spec.set_tier(tier);
  RETURN_IF_ERROR(AddEnv(options.env, false, spec.mutable_env()));
  RETURN_IF_ERROR(AddEnv(options.secrets, true, spec.mutable_env()));
  RETURN_IF_ERROR(AddBinds(options.binds, spec.mutable_binds()));
  const sandbox_wire::NetworkPolicy& network = options.network;
  if (network.allow_size() > 0 || network.deny_size() > 0 || network.open())
    *spec.mutable_network() = network;
  google::protobuf::RepeatedPtrField<sandbox_wire::EnvVar> labels;
  RETURN_IF_ERROR(AddEnv(options.labels, false, &labels));
  for (const auto& label : labels) (*spec.mutable_labels())[label.name()] = label.value();
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  ASSIGN_OR_RETURN(sandbox_wire::CreateResponse made, api->Create(request));
  if (context.json) {
    Json out = ToJson(made.sandbox());
    out["existed"] = made.existed();
    Json steps = Json::object();
    for (const auto& step : made.steps()) steps[step.step()] = step.duration_us();
    out["steps_us"] = steps;
    PrintJson(out);
    return kExitDone;
  }
  // The id alone on stdout, for `ID=$(reprise sandbox create ...)`.
  Print(made.sandbox().id() + "\n");
  if (::isatty(STDERR_FILENO) == 1) {
    int64_t micros = 0;
    for (const auto& step : made.steps()) micros += step.duration_us();
    fmt::print(stderr, "{}; next: {} sandbox exec {} -- COMMAND\n",
               made.existed()
                   ? "it was there already"
                   : fmt::format("made in {}", HumanSeconds(static_cast<double>(micros) / 1e6)),
               context.program, made.sandbox().id());
  }
  return kExitDone;
}

absl::StatusOr<int> ListSandboxes(const Context& context, const SandboxOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  ASSIGN_OR_RETURN(sandbox_wire::ListResponse list, api->List());
  if (context.json) {
    Json out = Json::array();
    for (const auto& sandbox : list.sandboxes()) out.push_back(ToJson(sandbox));
    PrintJson(out);
    return kExitDone;
  }
  Table table({"SANDBOX", "TIER", "IMAGE", "STATE", "CALLS", "CREATED", "NOTE"});
  for (const auto& sandbox : list.sandboxes()) {
    table.Add({sandbox.id(), TierName(sandbox.spec().tier()), sandbox.spec().image(),
               StateName(sandbox.state()), Count(sandbox.calls()), LocalTime(sandbox.created_us()),
               sandbox.message()});
  }
  Print(table.empty() ? "no sandboxes: `reprise sandbox create --tier function` makes one\n"
                      : table.Render());
  return kExitDone;
}

absl::StatusOr<int> RemoveSandboxes(const Context& context, const SandboxOptions& options) {
  return OnEach(context, options, "removed",
                [](SandboxApi* api, const std::string& id) { return api->Stop(id).status(); });
}
absl::StatusOr<int> PauseSandboxes(const Context& context, const SandboxOptions& options) {
  return OnEach(context, options, "paused",
                [](SandboxApi* api, const std::string& id) { return api->Pause(id); });
}
absl::StatusOr<int> ResumeSandboxes(const Context& context, const SandboxOptions& options) {
  return OnEach(context, options, "resumed",
                [](SandboxApi* api, const std::string& id) { return api->Resume(id); });
}

absl::StatusOr<int> ShowLogs(const Context& context, const SandboxOptions& options) {
  if (!options.call_id.empty()) return ShowCallOutput(context, options);
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  ASSIGN_OR_RETURN(sandbox_wire::ListCallsResponse list, api->ListCalls(options.id));
  if (context.json) {
    Json out = Json::array();
    for (const auto& call : list.calls()) out.push_back(ToJson(call));
    PrintJson(out);
    return kExitDone;
  }
  Table table({"CALL", "BEGAN", "TOOK", "ENDED", "COMMAND"});
  for (const auto& call : list.calls()) {
    bool completed = call.state() == sandbox_wire::CALL_STATE_COMPLETED;
    const auto& result = call.result();
    std::string ended = "running";
    if (completed) {
      ended = OutcomeName(result.outcome());
      if (result.outcome() == sandbox_wire::OUTCOME_EXITED)
        ended += fmt::format(" {}", result.exit_code());
    }
    constexpr size_t kCommandColumns = 60;
    table.Add({call.call_id(), LocalTime(call.intent_us()),
               completed ? HumanSeconds(static_cast<double>(result.usage().wall_us()) / 1e6) : "",
               ended, OneLine(CommandOf(call.argv()), kCommandColumns)});
  }
  Print(table.empty() ? "no calls yet\n" : table.Render());
  if (!table.empty()) {
    Print(fmt::format("\nnext: {} sandbox logs {} CALL shows what a call printed\n",
                      context.program, ShellQuote(options.id)));
  }
  return kExitDone;
}

absl::StatusOr<int> ImportImage(const Context& context, const SandboxOptions& options) {
  std::error_code error;
  std::string source = std::filesystem::absolute(options.from, error).lexically_normal().string();
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  ASSIGN_OR_RETURN(sandbox_wire::Image image, api->ImportImage(options.to, source));
  if (context.json) {
    PrintJson(ToJson(image));
  } else {
    Print(fmt::format("imported {}: {} layers, {}, {}\n", image.name(), image.layers(),
                      HumanBytes(image.size_bytes()), image.digest()));
  }
  return kExitDone;
}

absl::StatusOr<int> ListImages(const Context& context, const SandboxOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  ASSIGN_OR_RETURN(sandbox_wire::ListImagesResponse list, api->ListImages());
  if (context.json) {
    Json out = Json::array();
    for (const auto& image : list.images()) out.push_back(ToJson(image));
    PrintJson(out);
    return kExitDone;
  }
  Table table({"IMAGE", "LAYERS", "SIZE", "DIGEST"});
  for (const auto& image : list.images()) {
    table.Add(
        {image.name(), Count(image.layers()), HumanBytes(image.size_bytes()), image.digest()});
  }
  Print(table.empty() ? "no images: `reprise image import NAME PATH` brings one in\n"
                      : table.Render());
  return kExitDone;
}

absl::StatusOr<int> RemoveImages(const Context& context, const SandboxOptions& options) {
  return OnEach(context, options, "removed",
                [](SandboxApi* api, const std::string& name) { return api->RemoveImage(name); });
}

}  // namespace reprise::cli
