// The few CLI11 idioms that all command groups share. Included by the files that declare options,
// and by no other.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "clients/cli/context.h"

namespace reprise::cli {

// A command that does something: has --json, and leaves `action` in the context when it is chosen.
inline CLI::App* AddLeaf(CLI::App& parent, const std::string& name, const std::string& description,
                         Context& context, std::function<absl::StatusOr<int>()> action) {
  CLI::App* leaf = parent.add_subcommand(name, description);
  leaf->add_flag("--json", context.json, "print JSON on stdout, and nothing else there");
  leaf->callback([&context, action = std::move(action)] { context.action = action; });
  return leaf;
}

// A command that only has further commands.
inline CLI::App* AddGroup(CLI::App& parent, const std::string& name,
                          const std::string& description) {
  CLI::App* group = parent.add_subcommand(name, description);
  group->require_subcommand(1);
  return group;
}

// REPRISE_STATE stands for --state, so that a shell needs to name it once.
inline CLI::Option* AddState(CLI::App& app, std::string& state, const std::string& description) {
  return app.add_option("--state", state, description + " [or set REPRISE_STATE]")
      ->envname("REPRISE_STATE")
      ->type_name("DIR");
}

}  // namespace reprise::cli
