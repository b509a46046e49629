// Speed of the engine, the other half of bench_decode.py: tokens a second of prefill and decoding
// on examples/tiny-v4 and on a random model of 100 M parameters, how fast quantised matrices are
// read beside what one plain read of memory gives, and what a token costs as its context grows to 1
// M. The last line is JSON.
//   bench_decode [DIRECTORY]     where the random model is made, once; default: build/bench
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <openssl/sha.h>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/fd.h"
#include "engine/engine.h"
#include "engine/kv_state.h"
#include "engine/measure.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/matmul.h"
#include "tests/bench/random_model.h"

namespace reprise::engine {
namespace {

constexpr int kReadRepeats = 15;  // short, so that a busy machine leaves one undisturbed
constexpr int64_t kColumns = 4096;
constexpr uint64_t kReadBytes = uint64_t{256} << 20;  // far above any cache
constexpr int64_t kLongTokens = 8;                    // decoded at each context
constexpr int64_t kLongest = int64_t{1} << 20;

struct Setting {
  const char* model;
  int64_t context, batch, new_tokens;
  int repeats;
};
// As in bench_decode.py.
constexpr Setting kSettings[] = {
    {"tiny", 300, 1, 100, 3}, {"tiny", 300, 16, 100, 3}, {"100m", 1024, 1, 16, 2},
    {"100m", 1024, 8, 16, 1}, {"100m", 1024, 32, 16, 1}, {"100m", 8192, 1, 16, 1},
};

[[noreturn]] void Fail(const absl::Status& status) {
  fmt::print(stderr, "bench_decode: {}\n", status.ToString());
  std::exit(1);
}

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) Fail(value.status());
  return *std::move(value);
}

double Seconds(const base::Stopwatch& stopwatch) {
  return static_cast<double>(stopwatch.ElapsedMicros()) * 1e-6;
}

// GB/s of a matrix-vector product on all cores whose matrix of the type fills kReadBytes.
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
  double best = 0;
  for (int repeat = 0; repeat < kReadRepeats; ++repeat) {
    const base::Stopwatch stopwatch;
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) {
      pool.emplace_back([&, t] {
        kernels::cpu::Matmul(x.data(), kColumns, 1, w, w.rows * t / threads,
                             w.rows * (t + 1) / threads, y.data(), w.rows);
      });
    }
    for (std::thread& thread : pool) thread.join();
    best = std::max(best, static_cast<double>(kReadBytes) / Seconds(stopwatch) * 1e-9);
  }
  return best;
}

void ReadWeights(int threads, nlohmann::json* line) {
  const std::vector<uint8_t> memory(kReadBytes, 0x38);
  const double plain = ReadBandwidth(threads) * 1e-9;
  fmt::print("\n{:24}{:>10}{:>10}\n", "weights read", "GB/s", "of plain");
  fmt::print("{:24}{:10.2f}{:10.2f}\n", "plain read", plain, 1.0);
  (*line)["plain_read_gb_s"] = plain;
  using kernels::cpu::WeightType;
  for (const auto& [name, type] : {std::pair<const char*, WeightType>{"bf16", WeightType::kBf16},
                                   {"fp8", WeightType::kFp8},
                                   {"fp4", WeightType::kFp4}}) {
    const double rate = MatrixRate(type, memory, threads);
    fmt::print("{:24}{:10.2f}{:10.2f}\n", name, rate, rate / plain);
    (*line)[fmt::format("{}_gb_s", name)] = rate;
  }
}

// The saved state of a sequence made `tokens` long by repeating its pages (engine/FORMAT.md): what
// a token costs does not depend on what the entries say.
std::string Lengthened(const std::string& saved, const KvLayout& layout, int64_t tokens) {
  constexpr size_t kHead = 8 + SHA256_DIGEST_LENGTH, kLengths = 5 * sizeof(int64_t);
  int64_t length = 0;
  size_t at = kHead;  // one origin: count, first token, size, text
  uint64_t digest_size = 0;
  std::memcpy(&digest_size, saved.data() + at + 16, sizeof(digest_size));
  at += 24 + digest_size;
  std::memcpy(&length, saved.data() + at, sizeof(length));
  std::string body = saved.substr(kHead, at - kHead);
  body.append(reinterpret_cast<const char*>(&tokens), sizeof(tokens));
  const std::string ids = saved.substr(at + 8, static_cast<size_t>(length) * 4);
  while (body.size() < at - kHead + 8 + static_cast<size_t>(tokens) * 4) body += ids;
  body.resize(at - kHead + 8 + static_cast<size_t>(tokens) * 4);
  at += 8 + static_cast<size_t>(length) * 4;
  body += saved.substr(at, 16);
  at += 16;
  std::string lengths = saved.substr(at, kLengths);
  for (const size_t i : {0, 1, 2})  // length, longest, seen by an MTP block
    std::memcpy(lengths.data() + i * 8, &tokens, sizeof(tokens));
  body += lengths;
  at += kLengths;
  const size_t block = static_cast<size_t>(layout.block_floats) * sizeof(float);
  body += saved.substr(at, block);
  const std::string pages = saved.substr(at + block);
  const size_t wanted = body.size() + static_cast<size_t>(layout.Pages(tokens) * layout.page_bytes);
  while (body.size() < wanted) body += pages;
  body.resize(wanted);
  std::string hash(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(body.data()), body.size(),
         reinterpret_cast<unsigned char*>(hash.data()));
  return saved.substr(0, 8) + hash + body;
}

// Milliseconds of one decoded token with `tokens` before it.
double TokenAt(Engine* engine, const std::string& saved, const KvLayout& layout, int64_t tokens) {
  const auto sequence = Must(engine->Restore(Lengthened(saved, layout, tokens)));
  SamplingParams greedy;
  greedy.temperature = 0;
  int32_t next = 5;
  double best = 1e9;
  for (int64_t i = 0; i < kLongTokens; ++i) {
    StepItem item;
    item.sequence = sequence.get();
    item.tokens = {&next, 1};
    item.sampling = &greedy;
    const base::Stopwatch stopwatch;
    if (const absl::Status status = engine->Step(absl::MakeSpan(&item, 1)); !status.ok())
      Fail(status);
    best = std::min(best, Seconds(stopwatch) * 1e3);
    next = item.sampled_id;
  }
  return best;
}

// Milliseconds of attention alone over `tokens` uncompressed keys in every layer, on all threads.
double DenseAttention(const ModelConfig& config, int64_t tokens, int threads) {
  const int64_t n = config.head_dim;
  std::vector<float> keys(static_cast<size_t>(tokens * n), 0.01f);
  std::vector<const float*> rows;
  for (int64_t i = 0; i < tokens; ++i) rows.push_back(keys.data() + i * n);
  const std::vector<float> query(static_cast<size_t>(config.num_heads * n), 0.02f);
  double best = 1e9;
  for (int repeat = 0; repeat < 3; ++repeat) {
    const base::Stopwatch stopwatch;
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) {
      pool.emplace_back([&, t] {
        const int64_t begin = tokens * t / threads, count = tokens * (t + 1) / threads - begin;
        std::vector<float> scores(static_cast<size_t>(config.num_heads * count));
        std::vector<float> out(static_cast<size_t>(config.num_heads * n));
        kernels::cpu::DotRows(query.data(), n, config.num_heads, rows.data() + begin, count, n,
                              scores.data(), count);
        kernels::cpu::WeightedRows(scores.data(), config.num_heads, rows.data() + begin, count, n,
                                   out.data());
      });
    }
    for (std::thread& thread : pool) thread.join();
    best = std::min(best, Seconds(stopwatch) * 1e3);
  }
  return best * static_cast<double>(config.num_layers);
}

void LongContext(Engine* engine, int threads, nlohmann::json* line) {
  const KvLayout layout(engine->config(), 0, engine->numerics() == Numerics::kReference);
  const int64_t start = 8 * layout.page_tokens;
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < start; ++i)
    ids.push_back(static_cast<int32_t>((i * 31 + i * i) % engine->vocab_size()));
  const auto sequence = engine->NewSequence();
  StepItem item;
  item.sequence = sequence.get();
  item.tokens = ids;
  if (const absl::Status status = engine->Step(absl::MakeSpan(&item, 1)); !status.ok())
    Fail(status);
  const std::string saved = sequence->Save();
  fmt::print("\n{:>12}{:>14}{:>20}{:>22}\n", "context", "ms a token", "more than at 1k",
             "of a dense KV's cost");
  const double base = TokenAt(engine, saved, layout, start);
  for (int64_t tokens = start; tokens <= kLongest - 2 * start; tokens *= 4) {
    const double own = TokenAt(engine, saved, layout, tokens);
    const double dense = DenseAttention(engine->config(), tokens, threads);
    fmt::print("{:12}{:14.3f}{:20.3f}{:22.3f}\n", tokens, own, own - base, (own - base) / dense);
  }
  const int64_t most = kLongest - 2 * start;  // room for what is decoded
  const double own = TokenAt(engine, saved, layout, most);
  const double dense = DenseAttention(engine->config(), most, threads);
  fmt::print("{:12}{:14.3f}{:20.3f}{:22.3f}   bar 0.07\n", most, own, own - base,
             (own - base) / dense);
  (*line)["context_1m_ms"] = own;
  (*line)["context_1m_of_dense"] = (own - base) / dense;
}

int Main(const std::string& directory) {
  const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  nlohmann::json line = {{"bench", "decode"}, {"engine", "reprise"}, {"threads", threads}};
  const std::string tiny = std::string(REPRISE_SOURCE_DIR) + "/examples/tiny-v4";
  const std::string random = directory + "/model-100m";
  if (::access(random.c_str(), F_OK) != 0) {
    if (absl::Status made = base::MakeDirs(directory); !made.ok()) Fail(made);
    if (absl::Status made = WriteRandomModel(random); !made.ok()) Fail(made);
  }
  std::unique_ptr<Engine> engine;
  std::string loaded;
  for (const Setting& setting : kSettings) {
    if (loaded != setting.model) {
      engine.reset();
      engine = Must(Engine::Load(setting.model == std::string("tiny") ? tiny : random));
      loaded = setting.model;
    }
    const Speed speed = Must(MeasureSpeed(
        engine.get(), {setting.batch, setting.context, setting.new_tokens, setting.repeats}));
    const std::string name =
        fmt::format("{}_{}_batch{}", setting.model, setting.context, setting.batch);
    line[name + "_decode_per_s"] = speed.decode;
    line[name + "_prefill_per_s"] = speed.prefill;
  }
  engine.reset();
  ReadWeights(threads, &line);
  engine = Must(Engine::Load(tiny));
  LongContext(engine.get(), threads, &line);
  fmt::print("{}\n", line.dump());
  return 0;
}

}  // namespace
}  // namespace reprise::engine

int main(int argc, char** argv) {
  return reprise::engine::Main(argc > 1 ? argv[1]
                                        : std::string(REPRISE_SOURCE_DIR) + "/build/bench");
}
