// Decode and prefill speed of the engine, the other half of bench_decode.py: tokens a second on
// examples/tiny-v4 after the same prompt, and how fast quantised matrices are read beside what one
// plain read of memory gives. The last line is JSON.
//   bench_decode [DIRECTORY]     default: examples/tiny-v4
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "engine/engine.h"
#include "kernels/cpu/matmul.h"

namespace reprise::engine {
namespace {

constexpr size_t kContext = 300;
constexpr int kNewTokens = 100;
constexpr int kRepeats = 3;       // the best is reported
constexpr int kReadRepeats = 15;  // likewise; short, so that a busy machine leaves one undisturbed
constexpr int64_t kColumns = 4096;
constexpr uint64_t kReadBytes = uint64_t{256} << 20;  // far above any cache

double Seconds(const base::Stopwatch& stopwatch) {
  return static_cast<double>(stopwatch.ElapsedMicros()) * 1e-6;
}

void Feed(Engine* engine, std::vector<StepItem>* items) {
  if (const absl::Status status = engine->Step(absl::MakeSpan(*items)); !status.ok()) {
    fmt::print(stderr, "bench_decode: {}\n", status.ToString());
    std::exit(1);
  }
}

struct Rates {
  double prefill = 0, decode = 0;  // tokens a second, all sequences together
};

Rates Measure(Engine* engine, const std::vector<int32_t>& prompt, size_t batch) {
  Rates best;
  SamplingParams greedy;
  greedy.temperature = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    std::vector<std::unique_ptr<Sequence>> sequences;
    std::vector<std::vector<int32_t>> prompts(batch, prompt);
    std::vector<StepItem> items(batch);
    for (size_t i = 0; i < batch; ++i) {
      // Another first token for each, so that nothing is shared.
      prompts[i][0] = static_cast<int32_t>(i + batch * static_cast<size_t>(repeat));
      sequences.push_back(engine->NewSequence());
      items[i].sequence = sequences[i].get();
      items[i].tokens = prompts[i];
      items[i].sampling = &greedy;
    }
    base::Stopwatch stopwatch;
    Feed(engine, &items);
    best.prefill =
        std::max(best.prefill, static_cast<double>(batch * prompt.size()) / Seconds(stopwatch));
    std::vector<int32_t> next(batch);
    stopwatch = base::Stopwatch();
    for (int step = 0; step < kNewTokens; ++step) {
      for (size_t i = 0; i < batch; ++i) {
        next[i] = items[i].sampled_id;
        items[i].tokens = {&next[i], 1};
      }
      Feed(engine, &items);
    }
    best.decode =
        std::max(best.decode, static_cast<double>(batch * kNewTokens) / Seconds(stopwatch));
  }
  return best;
}

// Runs fn(thread) on every core at once; the GB they read a second, best of kReadRepeats.
template <typename Fn>
double ReadRate(int threads, uint64_t bytes, const Fn& fn) {
  double best = 0;
  for (int repeat = 0; repeat < kReadRepeats; ++repeat) {
    const base::Stopwatch stopwatch;
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) pool.emplace_back([&fn, t] { fn(t); });
    for (std::thread& thread : pool) thread.join();
    best = std::max(best, static_cast<double>(bytes) / Seconds(stopwatch) * 1e-9);
  }
  return best;
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

// GB/s of a matrix-vector product whose matrix of the type fills kReadBytes.
double MatrixRate(kernels::cpu::WeightType type, const std::vector<uint8_t>& memory, int threads) {
  using kernels::cpu::WeightType;
  const int64_t row_bytes = type == WeightType::kFp4    ? kColumns / 2
                            : type == WeightType::kFp8  ? kColumns
                            : type == WeightType::kBf16 ? kColumns * 2
                                                        : kColumns * 4;
  kernels::cpu::Weight w;
  w.data = memory.data();
  w.type = type;
  w.cols = kColumns;
  w.rows = static_cast<int64_t>(kReadBytes) / row_bytes;
  const std::vector<uint8_t> scales(static_cast<size_t>(w.rows * kColumns / 32), 120);
  w.scales = scales.data();
  w.scale_cols = type == WeightType::kFp4 ? kColumns / 32 : kColumns / 128;
  const std::vector<float> x(static_cast<size_t>(kColumns), 1.0f);
  std::vector<float> y(static_cast<size_t>(w.rows));
  return ReadRate(threads, kReadBytes, [&](int t) {
    kernels::cpu::Matmul(x.data(), kColumns, 1, w, w.rows * t / threads, w.rows * (t + 1) / threads,
                         y.data(), w.rows);
  });
}

int Main(const std::string& directory) {
  auto engine = Engine::Load(directory);
  if (!engine.ok()) {
    fmt::print(stderr, "bench_decode: {}\n", engine.status().ToString());
    return 1;
  }
  const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  std::vector<int32_t> prompt(kContext);
  for (size_t i = 0; i < kContext; ++i)
    prompt[i] =
        static_cast<int32_t>((i * 31 + i * i) % static_cast<size_t>((*engine)->vocab_size()));
  nlohmann::json line = {{"bench", "decode"},
                         {"engine", "reprise"},
                         {"context", kContext},
                         {"new_tokens", kNewTokens},
                         {"threads", threads}};
  for (const size_t batch : {1, 16}) {
    const Rates rates = Measure(engine->get(), prompt, batch);
    line[fmt::format("batch{}_tokens_per_s", batch)] = rates.decode;
    line[fmt::format("batch{}_prefill_tokens_per_s", batch)] = rates.prefill;
  }
  const std::vector<uint8_t> memory(kReadBytes, 0x38);
  std::atomic<uint64_t> sum{0};
  const double plain = ReadRate(threads, kReadBytes, [&](int t) {
    sum += PlainSum(
        memory.data() + kReadBytes / static_cast<uint64_t>(threads) * static_cast<uint64_t>(t),
        kReadBytes / static_cast<uint64_t>(threads));
  });
  fmt::print("{:24}{:>10}{:>10}\n", "weights read", "GB/s", "of plain");
  fmt::print("{:24}{:10.2f}{:10.2f}\n", "plain read", plain, 1.0);
  line["plain_read_gb_s"] = plain;
  using kernels::cpu::WeightType;
  for (const auto& [name, type] : {std::pair<const char*, WeightType>{"bf16", WeightType::kBf16},
                                   {"fp8", WeightType::kFp8},
                                   {"fp4", WeightType::kFp4}}) {
    const double rate = MatrixRate(type, memory, threads);
    fmt::print("{:24}{:10.2f}{:10.2f}\n", name, rate, rate / plain);
    line[fmt::format("{}_gb_s", name)] = rate;
  }
  fmt::print("{}\n", line.dump());
  return sum == 1 ? 1 : 0;  // the sum is used
}

}  // namespace
}  // namespace reprise::engine

int main(int argc, char** argv) {
  return reprise::engine::Main(argc > 1 ? argv[1]
                                        : std::string(REPRISE_SOURCE_DIR) + "/examples/tiny-v4");
}
