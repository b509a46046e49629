#include "engine/measure.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/status_macros.h"

namespace reprise::engine {
namespace {

constexpr size_t kPrefillTokens = 512;                // of all sequences in one step
constexpr uint64_t kReadBytes = uint64_t{256} << 20;  // far above any cache
constexpr int kReadRepeats = 15;  // short, so that a busy machine leaves one undisturbed

double Seconds(const base::Stopwatch& stopwatch) {
  return static_cast<double>(stopwatch.ElapsedMicros()) * 1e-6;
}

// Sums bytes in as many streams at once as a tile of weight rows has: one stream alone does not
// load the memory system.
uint64_t PlainSum(const uint8_t* bytes, uint64_t count) {
  constexpr uint64_t kStreams = 8;
  const auto* words = reinterpret_cast<const uint64_t*>(bytes);
  const uint64_t length = count / sizeof(uint64_t) / kStreams;
  uint64_t sums[kStreams] = {};
  for (uint64_t i = 0; i < length; ++i) {
    for (uint64_t s = 0; s < kStreams; ++s) sums[s] += words[s * length + i];
  }
  return std::accumulate(sums, sums + kStreams, uint64_t{0});
}

class Run {
 public:
  Run(Engine* engine, const SpeedOptions& options, int64_t number)
      : engine_(engine),
        options_(options),
        prompts_(static_cast<size_t>(options.batch)),
        items_(prompts_.size()) {
    greedy_.temperature = 0;
    const int64_t vocabulary = engine->vocab_size();
    for (int64_t i = 0; i < options.batch; ++i) {
      std::vector<int32_t>& prompt = prompts_[static_cast<size_t>(i)];
      for (int64_t t = 0; t < options.context; ++t)
        prompt.push_back(static_cast<int32_t>((t * 31 + t * t) % vocabulary));
      // Another first token for each, so that nothing is shared.
      prompt[0] = static_cast<int32_t>((i + options.batch * number) % vocabulary);
      sequences_.push_back(engine->NewSequence());
      items_[static_cast<size_t>(i)].sequence = sequences_.back().get();
    }
  }

  absl::StatusOr<double> Prefill() {
    const size_t part = std::max<size_t>(1, kPrefillTokens / items_.size());
    const size_t length = prompts_[0].size();
    const base::Stopwatch stopwatch;
    for (size_t begin = 0; begin < length; begin += part) {
      const size_t count = std::min(part, length - begin);
      for (size_t i = 0; i < items_.size(); ++i) {
        items_[i].tokens = absl::MakeConstSpan(prompts_[i]).subspan(begin, count);
        items_[i].sampling = begin + count == length ? &greedy_ : nullptr;
      }
      RETURN_IF_ERROR(engine_->Step(absl::MakeSpan(items_)));
    }
    return static_cast<double>(options_.batch * options_.context) / Seconds(stopwatch);
  }

  absl::StatusOr<double> Decode() {
    std::vector<int32_t> next(items_.size());
    const base::Stopwatch stopwatch;
    for (int64_t step = 0; step < options_.new_tokens; ++step) {
      for (size_t i = 0; i < items_.size(); ++i) {
        next[i] = items_[i].sampled_id;
        items_[i].tokens = {&next[i], 1};
      }
      RETURN_IF_ERROR(engine_->Step(absl::MakeSpan(items_)));
    }
    return static_cast<double>(options_.batch * options_.new_tokens) / Seconds(stopwatch);
  }

 private:
  Engine* const engine_;
  const SpeedOptions& options_;
  SamplingParams greedy_;
  std::vector<std::vector<int32_t>> prompts_;
  std::vector<StepItem> items_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
};

}  // namespace

absl::StatusOr<Speed> MeasureSpeed(Engine* engine, const SpeedOptions& options) {
  if (options.batch < 1 || options.context < 1 || options.new_tokens < 1 || options.repeats < 1)
    return absl::InvalidArgumentError("batch, context, tokens and repeats must be at least 1");
  if (options.context + options.new_tokens > engine->max_context()) {
    return absl::InvalidArgumentError(
        fmt::format("a context of {} and {} new tokens do not fit: the model takes {}",
                    options.context, options.new_tokens, engine->max_context()));
  }
  Speed best;
  for (int64_t repeat = 0; repeat < options.repeats; ++repeat) {
    Run run(engine, options, repeat);
    ASSIGN_OR_RETURN(const double prefill, run.Prefill());
    ASSIGN_OR_RETURN(const double decode, run.Decode());
    best.prefill = std::max(best.prefill, prefill);
    best.decode = std::max(best.decode, decode);
  }
  return best;
}

double ReadBandwidth(int threads) {
  const std::vector<uint8_t> memory(kReadBytes, 1);
  const uint64_t part = kReadBytes / static_cast<uint64_t>(threads);
  std::atomic<uint64_t> sum{0};  // so that the reads are not left out
  double best = 0;
  for (int repeat = 0; repeat < kReadRepeats; ++repeat) {
    const base::Stopwatch stopwatch;
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) {
      pool.emplace_back([&, t] {
        sum.fetch_add(PlainSum(memory.data() + part * static_cast<uint64_t>(t), part),
                      std::memory_order_relaxed);
      });
    }
    for (std::thread& thread : pool) thread.join();
    best = std::max(best, static_cast<double>(kReadBytes) / Seconds(stopwatch));
  }
  return sum.load() == 0 ? 0 : best;
}

}  // namespace reprise::engine
