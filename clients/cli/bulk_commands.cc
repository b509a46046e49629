// `reprise bulk`: its options. What it does is in bulk_run.h.
#include <memory>

#include "clients/cli/bulk_run.h"
#include "clients/cli/commands.h"
#include "clients/cli/limit_options.h"
#include "clients/cli/options.h"

namespace reprise::cli {

void AddBulkCommands(CLI::App& app, Context& context) {
  constexpr int kParallelMax = 1024;
  constexpr int kPatienceMaxS = 8 * 24 * 3600;
  CLI::App* group = AddGroup(app, "bulk", "run files of programs, isolated");
  auto options = std::make_shared<BulkOptions>();
  CLI::App* leaf = AddLeaf(
      *group, "run",
      "run every line of a file as one call; interrupted, the same command goes on, and no line "
      "runs twice. A line is a JSON object: id, argv or command, and if wanted stdin, files, env, "
      "limits, working_dir, user, image, sandbox, on_interrupt",
      context, [&context, options] { return RunBulk(context, *options); });
  leaf->add_option("FILE.jsonl", options->file, "one JSON object a line")->required();
  leaf->add_option("--tier", options->tier, "function, container, microvm or vm")
      ->required()
      ->type_name("TIER");
  leaf->add_option("--out", options->out, "file for one result a line, in the order of the input")
      ->required()
      ->type_name("FILE");
  leaf->add_option("--parallel", options->parallel, "calls at one time")
      ->check(CLI::Range(1, kParallelMax))
      ->capture_default_str()
      ->type_name("N");
  AddState(*leaf, options->target.state, "state directory; default: OUT.state");
  leaf->add_option("--server", options->target.server, "address of a running sandboxd")
      ->type_name("ADDR");
  leaf->add_option("--patience", options->patience_s,
                   "how long nobody may listen at --server before the run ends with an error; the "
                   "same command then goes on")
      ->check(CLI::Range(1, kPatienceMaxS))
      ->capture_default_str()
      ->type_name("SECONDS");
  leaf->add_option("--token-file", options->target.token_file, "file with the token for HOST:PORT")
      ->type_name("FILE");
  leaf->add_option("--name", options->name,
                   "name of the run, part of its calls' ids; default: the file's name. Another "
                   "name runs every line anew")
      ->type_name("NAME");
  AddText(*leaf, "--image", "NAME", "image that lines start from",
          [options](const std::string& text) { options->spec.set_image(text); });
  leaf->add_option("--bind", options->binds,
                   "host directory to show inside, HOST:INSIDE, writable with :rw; repeatable")
      ->type_name("BIND")
      ->allow_extra_args(false);
  leaf->add_option("--bind-root", options->bind_roots,
                   "host directory below which lines may bind; repeatable")
      ->type_name("DIR")
      ->allow_extra_args(false);
  leaf->add_option("--env", options->env, "environment variable of every line; repeatable")
      ->type_name("NAME=VALUE")
      ->allow_extra_args(false);
  leaf->add_option("--output-bytes", options->output_bytes,
                   "kept of each output stream in a result line, its end")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->capture_default_str()
      ->type_name("BYTES");
  AddLimitOptions(*leaf, *options->spec.mutable_limits());
}

}  // namespace reprise::cli
