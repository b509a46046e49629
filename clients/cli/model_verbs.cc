#include "clients/cli/model_verbs.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/output.h"
#include "clients/cli/progress.h"
#include "engine/chat.h"
#include "engine/config.h"
#include "engine/convert.h"
#include "engine/engine.h"
#include "engine/model_info.h"
#include "engine/safetensors.h"

namespace reprise::cli {
namespace {

constexpr size_t kPrefillTokens = 256;  // fed in one step

using Sequences = std::vector<std::vector<int32_t>>;

absl::StatusOr<std::vector<int32_t>> TokenIds(const Json& json, const std::string& where) {
  std::vector<int32_t> ids;
  for (const Json& item : json) {
    bool fits = item.is_number_integer() && item >= 0 && item <= INT32_MAX;
    if (!fits) {
      return absl::InvalidArgumentError(
          fmt::format("{}[{}] is {}, allowed: a token id", where, ids.size(), item.dump()));
    }
    ids.push_back(item.get<int32_t>());
  }
  if (ids.empty())
    return absl::InvalidArgumentError(fmt::format("{} is empty, allowed: token ids", where));
  return ids;
}

// One sequence or several; `*several` says which form the file has.
absl::StatusOr<Sequences> ReadTokens(const std::string& path, bool* several) {
  ASSIGN_OR_RETURN(std::string text, ReadInput(path));
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_array() || json.empty()) {
    return absl::InvalidArgumentError(fmt::format(
        "{}: not a JSON array of token ids, or of arrays of them, that is not empty", path));
  }
  *several = json[0].is_array();
  Sequences out;
  if (!*several) {
    ASSIGN_OR_RETURN(out.emplace_back(), TokenIds(json, path + ": "));
    return out;
  }
  for (size_t i = 0; i < json.size(); ++i) {
    std::string where = fmt::format("{}: [{}]", path, i);
    if (!json[i].is_array())
      return absl::InvalidArgumentError(fmt::format("{} is no array, but the first is", where));
    ASSIGN_OR_RETURN(out.emplace_back(), TokenIds(json[i], where));
  }
  return out;
}

std::string TensorName(size_t i, bool several) {
  return several ? fmt::format("logits.{}", i) : "logits";
}

// Of a file with one float32 tensor a sequence.
std::string LogitsHead(const Sequences& sequences, bool several, int64_t vocab) {
  std::vector<engine::TensorHead> heads;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const int64_t tokens = static_cast<int64_t>(sequences[i].size());
    heads.push_back({TensorName(i, several),
                     "F32",
                     {tokens, vocab},
                     static_cast<uint64_t>(tokens * vocab) * sizeof(float)});
  }
  return engine::SafetensorsHead(heads);
}

absl::StatusOr<std::vector<int32_t>> PromptIds(const ModelOptions& options,
                                               const engine::Engine& engine) {
  if (options.raw) return engine.tokenizer().Encode(options.prompt);
  engine::ChatOptions chat;
  ASSIGN_OR_RETURN(chat.mode, engine::ParseThinkingMode(options.thinking));
  ASSIGN_OR_RETURN(chat.effort, engine::ParseEffort(options.effort));
  std::string json = Json::array({{{"role", "user"}, {"content", options.prompt}}})
                         .dump(-1, ' ', false, Json::error_handler_t::replace);
  if (!options.messages_file.empty()) {
    ASSIGN_OR_RETURN(json, ReadInput(options.messages_file));
  }
  ASSIGN_OR_RETURN(std::vector<engine::PromptPiece> pieces, engine::EncodeChat(json, chat));
  return engine.tokenizer().Encode(pieces);
}

}  // namespace

absl::StatusOr<int> WriteLogits(const Context& context, const ModelOptions& options) {
  bool several = false;
  ASSIGN_OR_RETURN(Sequences sequences, ReadTokens(options.tokens_file, &several));
  ASSIGN_OR_RETURN(std::unique_ptr<engine::Engine> engine,
                   engine::LoadParallel(options.directory, {.threads = options.threads},
                                        options.parallel));
  std::string partial = options.out + ".partial";
  base::UniqueFd file(::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!file.valid()) return base::ErrnoStatus(errno, fmt::format("cannot write {}", partial));
  absl::Status written =
      base::WriteAll(file.get(), LogitsHead(sequences, several, engine->vocab_size()), partial);
  Json tensors = Json::object();
  {
    Progress progress("logits");
    for (size_t i = 0; i < sequences.size() && written.ok(); ++i) {
      progress.Update(i, sequences.size(), "");
      auto logits = engine->Logits(sequences[i]);
      written = logits.status();
      if (!written.ok()) break;
      std::string_view bytes(reinterpret_cast<const char*>(logits->data()),
                             logits->size() * sizeof(float));
      written = base::WriteAll(file.get(), bytes, partial);
      tensors[TensorName(i, several)] = {sequences[i].size(), engine->vocab_size()};
    }
  }
  if (!written.ok()) {
    ::unlink(partial.c_str());
    return written;
  }
  if (::rename(partial.c_str(), options.out.c_str()) != 0)
    return base::ErrnoStatus(errno, fmt::format("cannot move {} to {}", partial, options.out));
  if (context.json) {
    PrintJson({{"output", options.out}, {"tensors", tensors}});
  } else {
    for (const auto& [name, shape] : tensors.items())
      Print(fmt::format("{} float32 {}\n", name, shape.dump()));
    Print(fmt::format("written to {}\n", options.out));
  }
  return kExitDone;
}

absl::StatusOr<int> ConvertModel(const Context& context, const ModelOptions& options) {
  const std::map<std::string, engine::StoredAs> formats = {{"keep", engine::StoredAs::kKeep},
                                                           {"f32", engine::StoredAs::kF32},
                                                           {"bf16", engine::StoredAs::kBf16},
                                                           {"fp8", engine::StoredAs::kFp8},
                                                           {"fp4", engine::StoredAs::kFp4}};
  Interrupt interrupt;
  interrupt.Watch([] {});
  engine::ConvertOptions convert;
  convert.matrices = formats.at(options.matrices);
  convert.experts = formats.at(options.experts.empty() ? options.matrices : options.experts);
  convert.transformers = options.layout == "transformers";
  convert.experts_kept = options.experts_kept;
  convert.mtp = !options.no_mtp;
  convert.shard_bytes = options.shard_bytes;
  Progress progress("convert");
  convert.progress = [&](uint64_t done, uint64_t total) {
    progress.Update(done, total, HumanBytes(done));
    return !interrupt.interrupted();
  };
  ASSIGN_OR_RETURN(const engine::Converted made,
                   engine::ConvertCheckpoint(options.directory, options.out, convert));
  progress.Clear();
  if (context.json) {
    PrintJson({{"output", options.out},
               {"tensors", made.tensors},
               {"files", made.files},
               {"bytes", made.bytes}});
  } else {
    Print(fmt::format("{} tensors, {} in {} file{}, written to {}\n",
                      Count(static_cast<uint64_t>(made.tensors)), HumanBytes(made.bytes),
                      made.files, made.files == 1 ? "" : "s", options.out));
  }
  return kExitDone;
}

absl::StatusOr<int> Generate(const Context& context, const ModelOptions& options) {
  if (options.prompt.empty() && options.messages_file.empty())
    return UsageError("nothing to answer: give --prompt TEXT or --messages FILE");
  ASSIGN_OR_RETURN(std::unique_ptr<engine::Engine> engine,
                   engine::LoadParallel(options.directory, {.threads = options.threads},
                                        options.parallel));
  ASSIGN_OR_RETURN(std::vector<int32_t> prompt, PromptIds(options, *engine));
  if (prompt.empty()) return absl::InvalidArgumentError("the prompt has no tokens: give some text");
  engine::SamplingParams sampling{options.temperature, options.top_p, options.seed};
  std::unique_ptr<engine::Sequence> sequence = engine->NewSequence();
  engine::StreamDecoder decoder(&engine->tokenizer());
  base::Stopwatch watch;
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  std::string text, finish = "length";
  absl::Span<const int32_t> feed(prompt);
  while (static_cast<int64_t>(ids.size()) < options.max_tokens) {
    engine::StepItem item;
    item.sequence = sequence.get();
    item.tokens = feed.subspan(0, kPrefillTokens);
    feed.remove_prefix(item.tokens.size());
    if (feed.empty()) item.sampling = &sampling;
    RETURN_IF_ERROR(engine->Step(absl::MakeSpan(&item, 1)));
    if (!feed.empty()) continue;
    ids.push_back(item.sampled_id);
    logprobs.push_back(item.logprob);
    if (item.sampled_id == engine->eos_id()) {
      finish = "stop";
      break;
    }
    std::string piece = decoder.Push(item.sampled_id);
    if (!context.json) Print(piece);
    text += piece;
    if (sequence->length() >= engine->max_context()) {
      finish = "context";
      break;
    }
    feed = absl::MakeConstSpan(&ids.back(), 1);
  }
  std::string rest = decoder.Finish();
  text += rest;
  double seconds = watch.ElapsedMillis() / 1000;
  if (context.json) {
    PrintJson({{"text", text},
               {"ids", ids},
               {"logprobs", logprobs},
               {"prompt_tokens", prompt.size()},
               {"finish_reason", finish},
               {"seconds", seconds}});
    return kExitDone;
  }
  Print(rest + "\n");
  if (::isatty(STDERR_FILENO) == 1) {
    fmt::print(stderr, "({} tokens after a prompt of {}, {}, ended by {})\n", ids.size(),
               prompt.size(), HumanSeconds(seconds), finish);
  }
  return kExitDone;
}

absl::StatusOr<int> ShowModel(const Context& context, const ModelOptions& options) {
  ASSIGN_OR_RETURN(engine::ModelInfo info, engine::ReadModelInfo(options.directory));
  const engine::ModelConfig& config = info.config;
  if (context.json) {
    Json dtypes = Json::object();
    for (const auto& [dtype, stored] : info.by_dtype)
      dtypes[dtype] = {{"tensors", stored.tensors}, {"bytes", stored.bytes}};
    PrintJson({{"usable", info.usable.ok()},
               {"problem", info.usable.ok() ? Json() : Json(Message(info.usable))},
               {"parameters", info.parameters},
               {"active_parameters", info.active_parameters},
               {"tensors", info.total.tensors},
               {"bytes", info.total.bytes},
               {"dtypes", dtypes},
               {"layers", config.num_layers},
               {"window_layers", info.window_layers},
               {"csa_layers", info.csa_layers},
               {"hca_layers", info.hca_layers},
               {"hidden_size", config.hidden_size},
               {"heads", config.num_heads},
               {"head_dim", config.head_dim},
               {"experts", config.num_experts},
               {"experts_per_token", config.experts_per_token},
               {"vocab_size", config.vocab_size},
               {"max_context", config.max_context},
               {"kv_fixed_bytes", info.kv_fixed_bytes},
               {"kv_page_bytes", info.kv_page_bytes},
               {"kv_page_tokens", info.kv_page_tokens},
               {"mtp_blocks", info.mtp_blocks},
               {"quantised", info.quantised},
               {"kv_bytes", options.context > 0 ? Json(info.KvBytes(options.context)) : Json()}});
    return info.usable.ok() ? kExitDone : kExitFailed;
  }
  auto count = [](int64_t number) { return Count(static_cast<uint64_t>(number)); };
  auto bytes = [](int64_t number) { return HumanBytes(static_cast<uint64_t>(number)); };
  Facts facts;
  facts.Add("parameters", fmt::format("{}, {} active for one token", count(info.parameters),
                                      count(info.active_parameters)));
  facts.Add("layers", fmt::format("{}: {} window only, {} compressed by {} (CSA), {} by more (HCA)",
                                  config.num_layers, info.window_layers, info.csa_layers,
                                  engine::kCsaRatio, info.hca_layers));
  facts.Add("width", fmt::format("{}, {} heads of {}", config.hidden_size, config.num_heads,
                                 config.head_dim));
  facts.Add("experts",
            fmt::format("{}, {} for a token", config.num_experts, config.experts_per_token));
  facts.Add("vocabulary", count(config.vocab_size));
  facts.Add("context", fmt::format("{} tokens", count(config.max_context)));
  facts.Add("KV of a sequence", fmt::format("{} and {} for {} tokens", bytes(info.kv_fixed_bytes),
                                            bytes(info.kv_page_bytes), info.kv_page_tokens));
  if (options.context > 0) {
    facts.Add(fmt::format("KV of {} tokens", count(options.context)),
              fmt::format("{} bytes", info.KvBytes(options.context)));
  }
  facts.Add("MTP blocks", fmt::format("{}", info.mtp_blocks));
  facts.Add("numerics", info.quantised ? "reference (FP8 or FP4 matrices)" : "float");
  for (const auto& [dtype, stored] : info.by_dtype)
    facts.Add("stored as " + dtype,
              fmt::format("{} tensors, {}", count(stored.tensors), bytes(stored.bytes)));
  facts.Add("usable", info.usable.ok() ? "yes" : "no");
  Print(fmt::format("{}\n{}", options.directory, facts.Render()));
  if (!info.usable.ok()) return info.usable;
  return kExitDone;
}

}  // namespace reprise::cli
