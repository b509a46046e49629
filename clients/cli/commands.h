// The command groups of `reprise`. Each adds its commands to the program; `context` outlives it.
#pragma once

#include "clients/cli/context.h"

namespace CLI {
class App;
}

namespace reprise::cli {

void AddUpCommand(CLI::App& app, Context& context);
void AddDoctorCommand(CLI::App& app, Context& context);
void AddModelCommands(CLI::App& app, Context& context);
void AddChatCommands(CLI::App& app, Context& context);
void AddSandboxCommands(CLI::App& app, Context& context);
void AddImageCommands(CLI::App& app, Context& context);
void AddBulkCommands(CLI::App& app, Context& context);
void AddRolloutCommands(CLI::App& app, Context& context);
void AddTrajectoryCommands(CLI::App& app, Context& context);
void AddWeightsCommands(CLI::App& app, Context& context);

}  // namespace reprise::cli
