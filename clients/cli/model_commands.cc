// `reprise model` and `reprise chat`: their options. What they do is in model_verbs.h.
#include <memory>

#include "clients/cli/commands.h"
#include "clients/cli/model_verbs.h"
#include "clients/cli/options.h"
#include "engine/parallel/rank_options.h"

namespace reprise::cli {
namespace {

using Options = std::shared_ptr<ModelOptions>;
using Action = absl::StatusOr<int> (*)(const Context&, const ModelOptions&);

CLI::App* Add(CLI::App& group, Context& context, const std::string& name,
              const std::string& description, const Options& options, Action action) {
  return AddLeaf(group, name, description, context,
                 [&context, options, action] { return action(context, *options); });
}

void AddModel(CLI::App& leaf, ModelOptions& options) {
  leaf.add_option("DIR", options.directory,
                  "checkpoint: config.json, tokenizer.json, *.safetensors")
      ->required();
}

void AddThreads(CLI::App& leaf, ModelOptions& options) {
  leaf.add_option("--threads", options.threads, "engine threads, 0 = one a core")
      ->check(CLI::Range(0, 4096))
      ->type_name("N");
  engine::AddRankOptions(leaf, options.parallel);
}

void AddThinking(CLI::App& leaf, ModelOptions& options) {
  leaf.add_option("--thinking", options.thinking, "mode: chat or thinking")
      ->check(CLI::IsMember({"chat", "thinking"}))
      ->capture_default_str()
      ->type_name("MODE");
}

void AddEffort(CLI::App& leaf, ModelOptions& options) {
  leaf.add_option("--effort", options.effort, "reasoning effort: none, high or max")
      ->check(CLI::IsMember({"none", "high", "max"}))
      ->capture_default_str()
      ->type_name("LEVEL");
}

}  // namespace

void AddModelCommands(CLI::App& app, Context& context) {
  CLI::App* group = AddGroup(app, "model", "look into checkpoints, and run them");
  auto info = std::make_shared<ModelOptions>();
  CLI::App* shown = Add(*group, context, "info", "show what a checkpoint holds", info, ShowModel);
  AddModel(*shown, *info);
  shown
      ->add_option("--context", info->context,
                   "say how much memory the KV state of so many tokens takes")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31));

  auto plan = std::make_shared<ModelOptions>();
  CLI::App* planned = Add(*group, context, "plan",
                          "say how a checkpoint can be divided among devices", plan, PlanModel);
  AddModel(*planned, *plan);
  planned->add_option("--gpus", plan->devices, "devices of one size")
      ->check(CLI::Range(int64_t{1}, int64_t{65536}))
      ->required()
      ->type_name("N");
  planned->add_option("--memory", plan->device_bytes, "of each, e.g. 80gb")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->required()
      ->type_name("BYTES");
  planned->add_option("--context", plan->context, "tokens of a sequence")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))
      ->required()
      ->type_name("N");
  planned
      ->add_option("--reserve", plan->reserved_bytes,
                   "of each device, for activations and its runtime [2gb]")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->type_name("BYTES");

  auto logits = std::make_shared<ModelOptions>();
  CLI::App* leaf = Add(*group, context, "logits", "logits of every position of given tokens",
                       logits, WriteLogits);
  AddModel(*leaf, *logits);
  leaf->add_option("--tokens", logits->tokens_file,
                   "JSON array of token ids, or array of such arrays; - = stdin")
      ->required()
      ->type_name("FILE");
  logits->out = "logits.safetensors";
  leaf->add_option("--out", logits->out, "safetensors file to write")
      ->capture_default_str()
      ->type_name("FILE");
  AddThreads(*leaf, *logits);

  auto convert = std::make_shared<ModelOptions>();
  leaf = Add(*group, context, "convert",
             "copy a checkpoint: other number formats, other names, fewer experts", convert,
             ConvertModel);
  AddModel(*leaf, *convert);
  leaf->add_option("--out", convert->out, "the new directory")->required()->type_name("DIR");
  leaf->add_option("--dtype", convert->matrices, "format of the matrices: keep, f32, bf16 or fp8")
      ->check(CLI::IsMember({"keep", "f32", "bf16", "fp8"}))
      ->capture_default_str()
      ->type_name("TYPE");
  leaf->add_option(
          "--expert-dtype", convert->experts,
          "format of the routed experts: keep, f32, bf16, fp8 or fp4 [default: as --dtype]")
      ->check(CLI::IsMember({"keep", "f32", "bf16", "fp8", "fp4"}))
      ->type_name("TYPE");
  leaf->add_option("--layout", convert->layout,
                   "names: official, or transformers (without MTP blocks)")
      ->check(CLI::IsMember({"official", "transformers"}))
      ->capture_default_str()
      ->type_name("NAMES");
  leaf->add_option("--experts", convert->experts_kept, "keep the first N routed experts of a layer")
      ->check(CLI::Range(1, 65536))
      ->type_name("N");
  leaf->add_flag("--no-mtp", convert->no_mtp, "leave the MTP blocks out");
  leaf->add_option("--shard-size", convert->shard_bytes, "of one file, e.g. 2gb")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->type_name("BYTES");

  auto generate = std::make_shared<ModelOptions>();
  leaf = Add(*group, context, "generate", "sample an answer", generate, Generate);
  AddModel(*leaf, *generate);
  CLI::Option* prompt =
      leaf->add_option("--prompt", generate->prompt, "a user's message")->type_name("TEXT");
  CLI::Option* messages =
      leaf->add_option("--messages", generate->messages_file,
                       "JSON array of messages, or object with messages and tools; - = stdin")
          ->type_name("FILE");
  prompt->excludes(messages);
  leaf->add_flag("--raw", generate->raw, "--prompt is text to continue, no message")->needs(prompt);
  leaf->add_option("--seed", generate->seed, "same seed, same tokens")
      ->capture_default_str()
      ->type_name("N");
  leaf->add_option("--temperature", generate->temperature, "0 = always the likeliest token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str()
      ->type_name("T");
  leaf->add_option("--top-p", generate->top_p, "sample from the likeliest tokens of this mass")
      ->check(CLI::Range(1e-6, 1.0))
      ->capture_default_str()
      ->type_name("P");
  leaf->add_option("--max-tokens", generate->max_tokens, "stop after so many")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->capture_default_str()
      ->type_name("N");
  AddThinking(*leaf, *generate);
  AddEffort(*leaf, *generate);
  AddThreads(*leaf, *generate);

  auto bench = std::make_shared<ModelOptions>();
  leaf = Add(*group, context, "bench", "measure prefill and decode speed", bench, BenchModel);
  AddModel(*leaf, *bench);
  leaf->add_option("--batch", bench->batches, "sequences at one time, e.g. 1,8,32")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096))
      ->capture_default_str()
      ->type_name("N,...");
  leaf->add_option("--context", bench->contexts, "tokens that each has read, e.g. 1024,8192")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->capture_default_str()
      ->type_name("N,...");
  bench->max_tokens = 64;
  leaf->add_option("--max-tokens", bench->max_tokens, "tokens that each samples then")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str()
      ->type_name("N");
  leaf->add_option("--repeats", bench->repeats, "runs, of which the best counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->type_name("N");
  AddThreads(*leaf, *bench);
}

void AddChatCommands(CLI::App& app, Context& context) {
  CLI::App* group =
      AddGroup(app, "chat", "the chat format: messages to prompt, text to tool calls");
  auto encode = std::make_shared<ModelOptions>();
  CLI::App* leaf = Add(*group, context, "encode",
                       "print the exact prompt of a JSON file of messages", encode, EncodeMessages);
  leaf->add_option("FILE", encode->file,
                   "JSON array of messages, or object with messages and tools; - = stdin")
      ->required();
  AddThinking(*leaf, *encode);
  AddEffort(*leaf, *encode);
  auto parse = std::make_shared<ModelOptions>();
  leaf = Add(*group, context, "parse",
             "print content, reasoning and tool calls of an assistant's text, as JSON", parse,
             ParseAssistant);
  leaf->add_option("FILE", parse->file, "the text as sampled; - = stdin")->required();
  AddThinking(*leaf, *parse);
}

}  // namespace reprise::cli
