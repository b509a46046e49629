// `reprise up`: both daemons in this process, until SIGINT or SIGTERM.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "base/format.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "clients/cli/commands.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/options.h"
#include "clients/cli/output.h"
#include "engine/parallel/rank_options.h"
#include "rollout/embedded.h"
#include "rollout/kv_options.h"
#include "rollout/retention_flags.h"

namespace reprise::cli {
namespace {

struct Options {
  rollout::EmbeddedOptions embedded;
  std::string durability = "fsync";
};

absl::StatusOr<int> Up(const Context& context, Options options) {
  auto durability = storage::ParseDurability(options.durability);
  if (!durability.ok())
    return UsageError(fmt::format("--durability: {}", durability.status().message()));
  options.embedded.durability = *durability;
  Interrupt interrupt;
  ASSIGN_OR_RETURN(std::unique_ptr<rollout::Embedded> daemons,
                   rollout::Embedded::Start(options.embedded));
  if (context.json) {
    PrintJson({{"sandboxd", daemons->sandbox_addresses()},
               {"rolloutd", daemons->rollout_address()},
               {"http", daemons->http_address()}});
  } else {
    Facts facts;
    for (const std::string& address : daemons->sandbox_addresses()) facts.Add("sandboxd", address);
    facts.Add("rolloutd", daemons->rollout_address());
    if (!daemons->http_address().empty()) facts.Add("http", daemons->http_address() + "/v1");
    std::string state = ShellQuote(options.embedded.state_dir);
    Print(
        fmt::format("both daemons run; Ctrl-C ends them, sandboxes and jobs go on at the next "
                    "start\n\n{}\nnext, in another terminal: {} sandbox tiers --state {}\n",
                    facts.Render(), context.program, state));
  }
  interrupt.Wait();
  return kExitDone;
}

}  // namespace

void AddUpCommand(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* leaf = AddLeaf(app, "up", "run both daemons in this process, until Ctrl-C", context,
                           [&context, options] { return Up(context, *options); });
  rollout::EmbeddedOptions& embedded = options->embedded;
  AddState(*leaf, embedded.state_dir, "state directory, made when missing; holds journals, sockets")
      ->required();
  leaf->add_option("--listen", embedded.listen,
                   "one more address for sandboxd, unix:/PATH or HOST:PORT (needs --token-file); "
                   "repeatable")
      ->type_name("ADDR");
  leaf->add_option("--token-file", embedded.token_file,
                   "file with the token that clients over HOST:PORT must show")
      ->type_name("FILE");
  leaf->add_option("--http", embedded.http,
                   "HOST:PORT on which rolloutd serves OpenAI's API (needs --token-file, --model)")
      ->type_name("ADDR");
  leaf->add_option("--model", embedded.models,
                   "checkpoint directory that --http serves under its last part; repeatable")
      ->type_name("DIR");
  leaf->add_option("--thinking", embedded.thinking,
                   "thinking or chat: the mode of requests to --http that do not choose")
      ->check(CLI::IsMember({"thinking", "chat"}))
      ->capture_default_str()
      ->type_name("WORD");
  leaf->add_option("--bind-root", embedded.bind_roots,
                   "host directory below which sandboxes may bind; repeatable")
      ->type_name("DIR");
  leaf->add_flag("--image-chunks", embedded.chunk_images,
                 "keep images of containers in chunks that are read on demand");
  leaf->add_option("--image-cold", embedded.image_cold,
                   "cold tier of --image-chunks: a directory or s3://BUCKET?region=REGION")
      ->type_name("PLACE");
  leaf->add_option("--image-disk-bytes", embedded.image_disk_bytes,
                   "bound of --image-chunks on local disk")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->type_name("BYTES");
  leaf->add_option("--threads", embedded.threads, "engine threads, 0 = one a core")
      ->check(CLI::Range(0, 4096))
      ->type_name("N");
  engine::AddRankOptions(*leaf, embedded.parallel);
  rollout::AddKvOptions(*leaf, embedded.kv_bytes, embedded.prefix_disk);
  rollout::AddRetentionFlags(*leaf, embedded.retention);
  leaf->add_option("--durability", options->durability,
                   "when a record counts as written: fsync, os or none")
      ->capture_default_str()
      ->type_name("WORD");
}

}  // namespace reprise::cli
