// `reprise sandbox` and `reprise image`: their options. What they do is in sandbox_verbs.h and
// image_verbs.h.
#include <memory>
#include <string>
#include <vector>

#include "clients/cli/commands.h"
#include "clients/cli/image_verbs.h"
#include "clients/cli/limit_options.h"
#include "clients/cli/options.h"
#include "clients/cli/sandbox_machine.h"
#include "clients/cli/sandbox_verbs.h"

namespace reprise::cli {
namespace {

using Options = std::shared_ptr<SandboxOptions>;
using Action = absl::StatusOr<int> (*)(const Context&, const SandboxOptions&);

CLI::App* Add(CLI::App& group, Context& context, const std::string& name,
              const std::string& description, const Options& options, Action action) {
  CLI::App* leaf = AddLeaf(group, name, description, context,
                           [&context, options, action] { return action(context, *options); });
  SandboxTarget& target = options->target;
  AddState(*leaf, target.state, "state directory of the running daemon");
  leaf->add_option("--server", target.server, "address of sandboxd, unix:/PATH or HOST:PORT")
      ->type_name("ADDR");
  leaf->add_option("--token-file", target.token_file, "file with the token for HOST:PORT")
      ->type_name("FILE");
  return leaf;
}

void AddEnvOptions(CLI::App& leaf, SandboxOptions& options) {
  leaf.add_option("--env", options.env, "environment variable; repeatable")
      ->type_name("NAME=VALUE")
      ->allow_extra_args(false);
  leaf.add_option("--secret", options.secrets,
                  "environment variable that the journal never holds in clear; repeatable")
      ->type_name("NAME=VALUE")
      ->allow_extra_args(false);
}

void AddNetworkOptions(CLI::App& leaf, SandboxOptions& options) {
  auto add = [&leaf](const std::string& name, auto* rules, const std::string& what) {
    leaf.add_option_function<std::vector<std::string>>(
            name,
            [rules](const std::vector<std::string>& texts) {
              rules->Assign(texts.begin(), texts.end());
            },
            what)
        ->type_name("RULE")
        ->allow_extra_args(false);
  };
  add("--allow", options.network.mutable_allow(),
      "what it may reach: HOST, *.HOST, ADDRESS or CIDR, with :PORT[-PORT] and /tcp or /udp or "
      "without; repeatable");
  add("--deny", options.network.mutable_deny(),
      "with --open: addresses that it may not reach all the same; repeatable");
  leaf.add_flag_callback(
      "--open", [&options] { options.network.set_open(true); },
      "it may reach every public address");
}

void AddCreate(CLI::App& group, Context& context) {
  auto options = std::make_shared<SandboxOptions>();
  CLI::App* leaf =
      Add(group, context, "create", "make a sandbox, and print its id", options, CreateSandbox);
  sandbox_wire::SandboxSpec& spec = options->spec;
  leaf->add_option("--tier", options->tier, "function, container, microvm or vm")
      ->required()
      ->type_name("TIER");
  leaf->add_option("--id", options->id, "id to give; default: one is made up")->type_name("ID");
  AddText(*leaf, "--image", "NAME", "image to start from, as `image ls` shows it",
          [&spec](const std::string& text) { spec.set_image(text); });
  AddText(*leaf, "--user", "NAME", "user inside",
          [&spec](const std::string& text) { spec.set_user(text); });
  AddText(*leaf, "--workdir", "PATH", "working directory of calls; default /work",
          [&spec](const std::string& text) { spec.set_working_dir(text); });
  AddText(*leaf, "--runtime", "NAME", "container tier: runtime class; default runc",
          [&spec](const std::string& text) { spec.set_runtime(text); });
  leaf->add_option("--bind", options->binds,
                   "host directory to show inside, HOST:INSIDE, writable with :rw; repeatable")
      ->type_name("BIND")
      ->allow_extra_args(false);
  AddNetworkOptions(*leaf, *options);
  leaf->add_option("--label", options->labels, "label of your own; repeatable")
      ->type_name("NAME=VALUE")
      ->allow_extra_args(false);
  AddEnvOptions(*leaf, *options);
  AddLimitOptions(*leaf, *spec.mutable_limits());
}

// What `exec` and `shell` have in common.
void AddCallOptions(CLI::App& leaf, SandboxOptions& options) {
  sandbox_wire::ExecuteRequest& request = options.request;
  leaf.add_option("SANDBOX", options.id, "id, as `sandbox ls` shows it")->required();
  leaf.add_option("--call-id", options.call_id,
                  "name of the call; the same name again answers from the journal")
      ->type_name("ID");
  AddText(leaf, "--workdir", "PATH", "working directory; default: the sandbox's",
          [&request](const std::string& text) { request.set_working_dir(text); });
  AddText(leaf, "--user", "NAME", "run as; default: the sandbox's",
          [&request](const std::string& text) { request.set_user(text); });
  AddEnvOptions(leaf, options);
  AddLimitOptions(leaf, *request.mutable_limits());
}

void AddExec(CLI::App& group, Context& context) {
  auto options = std::make_shared<SandboxOptions>();
  CLI::App* leaf = Add(group, context, "exec",
                       "run a command in a sandbox; exits as the command does, or with 1 and one "
                       "line when it did not exit",
                       options, ExecInSandbox);
  AddCallOptions(*leaf, *options);
  leaf->add_option("COMMAND", options->words, "command and its arguments, after --");
  leaf->add_flag("-i,--stdin", options->forward_stdin, "forward standard input to the command");
  leaf->add_flag("-t,--tty", options->on_terminal, "run it on a terminal, of the size of this one");
}

void AddShell(CLI::App& group, Context& context) {
  auto options = std::make_shared<SandboxOptions>();
  CLI::App* leaf =
      Add(group, context, "shell", "work in a sandbox on a terminal; exits as the shell does",
          options, ShellInSandbox);
  AddCallOptions(*leaf, *options);
  leaf->add_option(
      "COMMAND", options->words,
      "program and its arguments, after --; default: bash where there is one, else sh");
}

void AddSnapshots(CLI::App& group, Context& context) {
  auto taken = std::make_shared<SandboxOptions>();
  CLI::App* leaf =
      Add(group, context, "snapshot",
          "keep the files of a sandbox as an image that `create` can name", taken, SnapshotSandbox);
  leaf->add_option("SANDBOX", taken->id, "whose files")->required();
  leaf->add_option("--name", taken->to, "name of the image; default: one is made up")
      ->type_name("NAME");
  leaf->add_option("--id", taken->call_id,
                   "name of the snapshot; the same name again answers with the same snapshot")
      ->type_name("ID");
  auto listed = std::make_shared<SandboxOptions>();
  leaf = Add(group, context, "snapshots", "list the snapshots of a sandbox", listed,
             ListSandboxSnapshots);
  leaf->add_option("SANDBOX", listed->id, "whose")->required();
  auto forked = std::make_shared<SandboxOptions>();
  leaf = Add(group, context, "fork",
             "make a sandbox with the files that another one has now, and print its id; running "
             "processes are not copied",
             forked, ForkSandbox);
  leaf->add_option("SANDBOX", forked->id, "whose files")->required();
  leaf->add_option("--id", forked->to, "id to give; default: one is made up")->type_name("ID");
  AddEnvOptions(*leaf, *forked);
  AddLimitOptions(*leaf, *forked->spec.mutable_limits());
  auto restored = std::make_shared<SandboxOptions>();
  leaf = Add(group, context, "restore",
             "make a lost sandbox again from its newest snapshot and its log", restored,
             RestoreSandbox);
  leaf->add_option("SANDBOX", restored->id, "which")->required();
}

CLI::App* AddWithIds(CLI::App& group, Context& context, const std::string& name,
                     const std::string& description, const std::string& what, Action action) {
  auto options = std::make_shared<SandboxOptions>();
  CLI::App* leaf = Add(group, context, name, description, options, action);
  leaf->add_option(what, options->ids, "which; several may be given")->required();
  return leaf;
}

void AddMachineCommands(CLI::App& group, Context& context) {
  auto console = std::make_shared<SandboxOptions>();
  CLI::App* leaf = Add(group, context, "console",
                       "show what the serial console of a vm sandbox said", console, ShowConsole);
  leaf->add_option("SANDBOX", console->id, "id of the sandbox")->required();
  leaf->add_option("--type", console->typed, "type this at the console first")->type_name("TEXT");
  leaf->add_flag("-f,--follow", console->follow, "go on with what comes");
  auto screen = std::make_shared<SandboxOptions>();
  leaf = Add(group, context, "screenshot", "save the screen of a vm sandbox as PNG", screen,
             TakeScreenshot);
  leaf->add_option("SANDBOX", screen->id, "id of the sandbox")->required();
  leaf->add_option("FILE", screen->to, "file to write")->required();
  auto input = std::make_shared<SandboxOptions>();
  leaf = Add(group, context, "input", "press keys, move the pointer or press the power button",
             input, SendInput);
  leaf->add_option("SANDBOX", input->id, "id of the sandbox")->required();
  leaf->add_option("ACTION", input->words,
                   "key:NAME-NAME, type:TEXT, move:X,Y (0 to 32767), press:BUTTON, "
                   "release:BUTTON, click:BUTTON (left, middle, right, wheel-up, wheel-down) or "
                   "power; several are done in order")
      ->required();
}

}  // namespace

void AddSandboxCommands(CLI::App& app, Context& context) {
  CLI::App* group = AddGroup(app, "sandbox", "make sandboxes and run commands in them");
  Add(*group, context, "tiers", "show the kinds of sandbox that this host has",
      std::make_shared<SandboxOptions>(), ShowTiers);
  AddCreate(*group, context);
  AddExec(*group, context);
  AddShell(*group, context);
  Add(*group, context, "ls", "list sandboxes", std::make_shared<SandboxOptions>(), ListSandboxes);
  auto logs = std::make_shared<SandboxOptions>();
  CLI::App* leaf = Add(*group, context, "logs",
                       "list the calls of a sandbox, or show what one printed", logs, ShowLogs);
  leaf->add_option("SANDBOX", logs->id, "id of the sandbox")->required();
  leaf->add_option("CALL", logs->call_id, "id of the call");
  auto copy = std::make_shared<SandboxOptions>();
  leaf = Add(*group, context, "cp", "copy a file into or out of a sandbox", copy, CopyFile);
  leaf->add_option("FROM", copy->from, "file here, or SANDBOX:PATH")->required();
  leaf->add_option("TO", copy->to, "SANDBOX:PATH, or file here")->required();
  AddMachineCommands(*group, context);
  auto watch = std::make_shared<SandboxOptions>();
  leaf = Add(*group, context, "watch",
             "print what happens in a directory of a sandbox, until Ctrl-C", watch, WatchSandbox);
  leaf->add_option("SANDBOX", watch->id, "id of the sandbox")->required();
  leaf->add_option("PATH", watch->from, "directory in it")->required();
  leaf->add_flag("-r,--recursive", watch->recursive, "with all directories below it");
  leaf->add_option("--events", watch->events_max, "end after this many")
      ->type_name("N")
      ->check(CLI::PositiveNumber);
  auto network = std::make_shared<SandboxOptions>();
  leaf = Add(*group, context, "network",
             "show what a sandbox may reach, or replace it; connections that are no longer allowed "
             "are cut",
             network, NetworkOfSandbox);
  leaf->add_option("SANDBOX", network->id, "id of the sandbox")->required();
  AddNetworkOptions(*leaf, *network);
  leaf->add_flag("--none", network->no_network, "nothing is reachable");
  AddWithIds(*group, context, "pause", "freeze sandboxes", "SANDBOX", PauseSandboxes);
  AddWithIds(*group, context, "resume", "let frozen sandboxes go on", "SANDBOX", ResumeSandboxes);
  AddSnapshots(*group, context);
  AddWithIds(*group, context, "rm", "stop sandboxes and remove what they hold; their logs stay",
             "SANDBOX", RemoveSandboxes);
}

void AddImageCommands(CLI::App& app, Context& context) {
  CLI::App* group = AddGroup(app, "image", "images that sandboxes start from");
  auto import = std::make_shared<SandboxOptions>();
  CLI::App* leaf = Add(*group, context, "import", "bring in an image", import, ImportImage);
  leaf->add_option("NAME", import->to, "name to give")->required();
  leaf->add_option("PATH", import->from,
                   "on the daemon's machine: a directory with a root file system, an OCI layout, "
                   "an archive (tar), or for the vm tier a whole disk (QCOW2 or raw)")
      ->required();
  Add(*group, context, "ls", "list images", std::make_shared<SandboxOptions>(), ListImages);
  AddWithIds(*group, context, "rm", "remove images", "NAME", RemoveImages);
  auto shown = std::make_shared<ImageOptions>();
  leaf = AddLeaf(*group, "show", "sizes, sharing and layers of an image in chunks", context,
                 [&context, shown] { return ShowImage(context, *shown); });
  AddState(*leaf, shown->state, "state directory of the daemon that has the image");
  leaf->add_option("NAME", shown->name, "which")->required();
  auto collected = std::make_shared<ImageOptions>();
  leaf = AddLeaf(*group, "gc", "remove layers and chunks that no image names", context,
                 [&context, collected] { return CollectImages(context, *collected); });
  AddState(*leaf, collected->state, "state directory of the daemon that has the images");
}

}  // namespace reprise::cli
