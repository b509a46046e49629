// reprise: the command. Adds the command groups, parses the arguments, runs what they chose, and
// turns every error into one line.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <string>
#include <vector>

#include "base/log.h"
#include "clients/cli/commands.h"
#include "clients/cli/context.h"

namespace {

using reprise::cli::Context;

// The command that was chosen as far as the arguments say, and its name as it is typed.
const CLI::App& Chosen(const CLI::App& app, std::string* name) {
  const CLI::App* chosen = &app;
  *name = app.get_name();
  while (!chosen->get_subcommands().empty()) {
    chosen = chosen->get_subcommands().back();
    *name += " " + chosen->get_name();
  }
  return *chosen;
}

// What is wrong with the arguments. "A subcommand is required" is no answer to a misspelt one.
std::string ParseProblem(const CLI::App& app, const CLI::ParseError& error) {
  std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
  std::erase(unknown, "--");
  if (unknown.empty()) return error.what();
  std::string name, hint;
  if (Chosen(app, &name).get_option_no_throw("COMMAND") != nullptr)
    hint = ", a command's own options go after --";
  return fmt::format("unknown word \"{}\"{}", unknown[0], hint);
}

int Fail(const CLI::App& app, const std::string& what, int code) {
  std::string name, hint;
  Chosen(app, &name);
  if (code == reprise::cli::kExitUsage) hint = fmt::format(" (see `{} --help`)", name);
  fmt::print(stderr, "reprise: {}{}\n", what, hint);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  Context context;
  context.program = argv[0];
  CLI::App app("Rollouts of tool-using agents that never do the same work twice.", "reprise");
  app.require_subcommand(1);
  app.set_version_flag("--version", "reprise " REPRISE_VERSION);
  reprise::cli::AddRolloutCommands(app, context);
  reprise::cli::AddTrajectoryCommands(app, context);
  reprise::cli::AddWeightsCommands(app, context);
  reprise::cli::AddSandboxCommands(app, context);
  reprise::cli::AddImageCommands(app, context);
  reprise::cli::AddBulkCommands(app, context);
  reprise::cli::AddModelCommands(app, context);
  reprise::cli::AddChatCommands(app, context);
  reprise::cli::AddUpCommand(app, context);
  reprise::cli::AddDoctorCommand(app, context);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return Fail(app, ParseProblem(app, error), reprise::cli::kExitUsage);
  }
  // A command's terminal shows what it did; the daemons inside it speak up only when it matters.
  reprise::base::SetLogLevel(reprise::base::LogLevel::kWarn);
  std::signal(SIGPIPE, SIG_IGN);
  absl::StatusOr<int> code = context.action();
  if (code.ok()) return *code;
  int failed = reprise::cli::IsUsageError(code.status()) ? reprise::cli::kExitUsage
                                                         : reprise::cli::kExitFailed;
  return Fail(app, reprise::cli::Message(code.status()), failed);
}
