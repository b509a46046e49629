// `reprise weights`: new weights for the models of a running daemon, and which ones it has had.
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/status_macros.h"
#include "clients/cli/commands.h"
#include "clients/cli/options.h"
#include "clients/cli/output.h"
#include "clients/cli/sockets.h"
#include "clients/cli/wire_json.h"
#include "rollout/client.h"

namespace reprise::cli {
namespace {

struct Options {
  std::string server, state;
  std::string directory, model, running, kv;
  uint64_t version = 0;
};

absl::StatusOr<std::unique_ptr<rollout::RolloutClient>> Connect(const Options& options) {
  if (!options.server.empty()) return rollout::RolloutClient::Connect(options.server);
  if (options.state.empty()) {
    return UsageError("give --state of the running daemon, or its address as --server");
  }
  std::string socket = SocketOf(options.state, "rolloutd.sock");
  if (!Answers(socket)) {
    return absl::UnavailableError(
        fmt::format("no daemon serves {}: weights are of one that runs, `reprise up` starts it",
                    options.state));
  }
  return rollout::RolloutClient::Connect(socket);
}

std::string Absolute(const std::string& path) {
  std::error_code ignored;
  return path.empty() ? "" : std::filesystem::absolute(path, ignored).lexically_normal().string();
}

absl::StatusOr<int> Load(const Context& context, const Options& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<rollout::RolloutClient> client, Connect(options));
  rollout_wire::LoadWeightsRequest request;
  request.set_directory(Absolute(options.directory));
  request.set_model(Absolute(options.model));
  request.set_version(options.version);
  request.set_running(options.running);
  request.set_kv(options.kv);
  ASSIGN_OR_RETURN(rollout_wire::LoadWeightsAnswer answer, client->LoadWeights(request));
  if (context.json) {
    Json out = ToJson(answer.version());
    out["switched"] = answer.switched();
    out["draining"] = answer.draining();
    out["stale"] = answer.stale();
    PrintJson(out);
    return kExitDone;
  }
  Print(
      fmt::format("weight version {} of {} is in force: {} running go on under it, {} end under "
                  "older ones, {} were too old\n",
                  answer.version().version(), answer.version().model(), answer.switched(),
                  answer.draining(), answer.stale()));
  return kExitDone;
}

absl::StatusOr<int> Show(const Context& context, const Options& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<rollout::RolloutClient> client, Connect(options));
  ASSIGN_OR_RETURN(rollout_wire::ShowWeightsResponse shown,
                   client->ShowWeights(Absolute(options.model)));
  if (context.json) {
    Json out = Json::array();
    for (const auto& version : shown.versions()) out.push_back(ToJson(version));
    PrintJson(out);
    return kExitDone;
  }
  Table table({"MODEL", "VERSION", "IN FORCE", "LOADED", "RUNNING", "KV", "DIGEST", "DIRECTORY"});
  constexpr size_t kDigestShown = 12;
  auto word = [](const std::string& text) { return text.empty() ? "as the job says" : text; };
  for (const auto& version : shown.versions()) {
    bool own = version.version() == 0;
    table.Add({version.model(), Count(version.version()), version.in_force() ? "yes" : "",
               LocalTime(version.loaded_us()), own ? "" : word(version.running()),
               own ? "" : word(version.kv()), version.digest().substr(0, kDigestShown),
               version.directory()});
  }
  Print(table.empty() ? "no model is loaded: the first job that names one loads it\n"
                      : table.Render());
  return kExitDone;
}

void AddTarget(CLI::App& app, Options& options) {
  AddState(app, options.state, "state directory of a running daemon");
  app.add_option("--server", options.server, "address of a running rolloutd, e.g. unix:/PATH")
      ->type_name("ADDR");
  app.add_option("--model", options.model,
                 "model directory of the jobs; not needed where one model is loaded")
      ->type_name("DIR");
}

}  // namespace

void AddWeightsCommands(CLI::App& app, Context& context) {
  CLI::App* group = AddGroup(app, "weights", "change the weights of a model while it generates");

  auto load = std::make_shared<Options>();
  CLI::App* leaf = AddLeaf(*group, "load",
                           "put a checkpoint in force between two steps; the files must stay as "
                           "they are while a trajectory needs them",
                           context, [&context, load] { return Load(context, *load); });
  leaf->add_option("DIR", load->directory, "checkpoint of the same architecture and tokenizer")
      ->required();
  leaf->add_option("--version", load->version, "its version, above all earlier ones; default: next")
      ->type_name("N");
  leaf->add_option("--running", load->running,
                   "what running trajectories do; default: what their job says")
      ->check(CLI::IsMember({"continue", "drain"}));
  leaf->add_option("--kv", load->kv,
                   "the KV states of those that continue; default: what their job says")
      ->check(CLI::IsMember({"keep", "recompute"}));
  AddTarget(*leaf, *load);

  auto show = std::make_shared<Options>();
  leaf = AddLeaf(*group, "show", "list the weight versions of the loaded models", context,
                 [&context, show] { return Show(context, *show); });
  AddTarget(*leaf, *show);
}

}  // namespace reprise::cli
