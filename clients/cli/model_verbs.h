// What `reprise model` and `reprise chat` do once their arguments are known.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/cli/context.h"
#include "engine/parallel/parallel_engine.h"

namespace reprise::cli {

struct ModelOptions {
  std::string directory;
  int threads = 0;  // of a rank; 0 = one a core
  engine::ParallelOptions parallel;
  int64_t context = 0;  // info: tokens to count the KV state of; 0 = not asked
  // logits
  std::string tokens_file, out;
  // generate
  std::string prompt, messages_file;
  bool raw = false;  // the prompt is text to continue, not a message
  uint64_t seed = 0;
  float temperature = 1.0f, top_p = 1.0f;
  int64_t max_tokens = 256;
  // convert, with `out`
  std::string matrices = "keep", experts = "", layout = "official";
  int64_t experts_kept = 0;  // 0 = all
  bool no_mtp = false;
  uint64_t shard_bytes = 5'000'000'000;
  // bench, with `max_tokens`
  std::vector<int64_t> batches = {1, 8}, contexts = {1024};
  int repeats = 3;
  // plan, with `context`
  int64_t devices = 1;
  uint64_t device_bytes = 0, reserved_bytes = 2'000'000'000;
  // generate and chat
  std::string thinking = "thinking", effort = "none";
  std::string file;  // chat
};

absl::StatusOr<int> ShowModel(const Context& context, const ModelOptions& options);
// Teacher-forced logits to a safetensors file: "logits", or "logits.<i>" for several sequences,
// float32 [sequence, vocab].
absl::StatusOr<int> WriteLogits(const Context& context, const ModelOptions& options);
absl::StatusOr<int> Generate(const Context& context, const ModelOptions& options);

// A copy in other number formats, under other names, or with fewer experts.
absl::StatusOr<int> ConvertModel(const Context& context, const ModelOptions& options);

// Prefill and decode speed for each batch size and context.
absl::StatusOr<int> BenchModel(const Context& context, const ModelOptions& options);

// How the model can be divided among devices of a size.
absl::StatusOr<int> PlanModel(const Context& context, const ModelOptions& options);

// Messages to the exact text of the prompt.
absl::StatusOr<int> EncodeMessages(const Context& context, const ModelOptions& options);
// An assistant's text to content, reasoning, tool calls and error, as JSON.
absl::StatusOr<int> ParseAssistant(const Context& context, const ModelOptions& options);

// A whole file, "-" = standard input.
absl::StatusOr<std::string> ReadInput(const std::string& path);

}  // namespace reprise::cli
