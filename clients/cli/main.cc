// reprise: the command. Adds the command groups, parses the arguments, runs what they chose, and
// turns every error into one line.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <csignal>

#include "base/log.h"
#include "clients/cli/commands.h"
#include "clients/cli/context.h"

namespace {

using reprise::cli::Context;

// The command whose arguments are wrong, as it is typed.
std::string Chosen(const CLI::App& app) {
  std::string name = app.get_name();
  for (const CLI::App* next = &app; !next->get_subcommands().empty();) {
    next = next->get_subcommands().back();
    name += " " + next->get_name();
  }
  return name;
}

int Fail(const CLI::App& app, const std::string& what, int code) {
  std::string hint =
      code == reprise::cli::kExitUsage ? fmt::format(" (see `{} --help`)", Chosen(app)) : "";
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
    // "A subcommand is required" is no answer to a misspelt one.
    std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
    std::erase(unknown, "--");
    return Fail(app,
                unknown.empty() ? error.what() : fmt::format("unknown word \"{}\"", unknown[0]),
                reprise::cli::kExitUsage);
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
