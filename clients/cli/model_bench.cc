// `reprise model bench`: tokens a second of a checkpoint on this machine.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/status_macros.h"
#include "clients/cli/model_verbs.h"
#include "clients/cli/output.h"
#include "clients/cli/progress.h"
#include "engine/measure.h"

namespace reprise::cli {

absl::StatusOr<int> BenchModel(const Context& context, const ModelOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::Engine> engine,
                   engine::LoadParallel(options.directory, {.threads = options.threads},
                                        options.parallel));
  Table table({"batch", "context", "prefill tok/s", "decode tok/s", "ms a step"});
  Json rows = Json::array();
  Progress progress("bench");
  const uint64_t total = options.batches.size() * options.contexts.size();
  for (const int64_t length : options.contexts) {
    for (const int64_t batch : options.batches) {
      progress.Update(rows.size(), total, fmt::format("batch {}, context {}", batch, length));
      ASSIGN_OR_RETURN(
          const engine::Speed speed,
          engine::MeasureSpeed(engine.get(), {batch, length, options.max_tokens, options.repeats}));
      const double step_ms = static_cast<double>(batch) / speed.decode * 1000;
      table.Add({fmt::format("{}", batch), fmt::format("{}", length),
                 fmt::format("{:.1f}", speed.prefill), fmt::format("{:.1f}", speed.decode),
                 fmt::format("{:.3f}", step_ms)});
      rows.push_back({{"batch", batch},
                      {"context", length},
                      {"new_tokens", options.max_tokens},
                      {"prefill_tokens_per_s", speed.prefill},
                      {"decode_tokens_per_s", speed.decode},
                      {"step_ms", step_ms}});
    }
  }
  progress.Clear();
  if (context.json) {
    PrintJson({{"model", options.directory}, {"runs", rows}});
  } else {
    Print(table.Render());
  }
  return kExitDone;
}

}  // namespace reprise::cli
