// What the journal saves, and what it takes to use it: a thousand interrupted trajectories of fifty
// steps are read back and folded, and their KV states made again by prefill, beside running them
// again (every token decoded, every call made); a recorded call is answered from memory and from a
// store that was just opened. Bars: a recorded step in 50 us from memory and 200 us from disk.
//
// The tokens are drawn at random and forced on the engine: how long a step is, not what it says,
// decides its cost. Running again is charged nothing for the tools themselves, only the bare
// fork+exec of /bin/true that the cheapest tool cannot go below.
//   bench_resume [TRAJECTORIES [DIRECTORY]]
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/fd.h"
#include "engine/config.h"
#include "engine/engine.h"
#include "replay/call_log.h"
#include "replay/trajectory_log.h"
#include "replay/trajectory_state.h"
#include "rollout/identity.h"
#include "rollout/scheduler.h"
#include "storage/store.h"
#include "tests/bench/support.h"

extern char** environ;

namespace reprise::rollout {
namespace {

namespace journal = replay::journal;
namespace sandbox = ::reprise::sandbox::v1;

const char kTinyModel[] = REPRISE_SOURCE_DIR "/examples/tiny-v4";
constexpr uint32_t kSteps = 50;
constexpr size_t kPrompt = 288, kSampled = 46,
                 kFed = 12;            // tokens, as tiny-v4's episodes have them
constexpr size_t kResultBytes = 1024;  // output of a call
constexpr size_t kDecoded = 8;         // trajectories that the engine makes again, at one time
constexpr double kMemoryBarUs = 50, kDiskBarUs = 200;

std::string IdOf(size_t trajectory) {
  return TrajectoryId("bench", static_cast<uint32_t>(trajectory), 0);
}

// ---- logs as rolloutd writes them

class Writer {
 public:
  Writer(replay::TrajectoryLog* log, size_t trajectory, int64_t vocabulary)
      : log_(log),
        id_(IdOf(trajectory)),
        random_(trajectory),
        ids_(0, static_cast<int32_t>(vocabulary) - 1) {}

  // One trajectory that was interrupted before its last answer.
  void Write() {
    journal::TrajectoryEntry start;
    start.mutable_start()->set_trajectory_id(id_);
    start.mutable_start()->set_job_id("bench");
    start.mutable_start()->set_seed(random_());
    for (size_t i = 0; i < kPrompt; ++i) start.mutable_start()->add_prompt_ids(ids_(random_));
    position_ = kPrompt;
    Add(std::move(start));
    for (uint32_t step = 0; step < kSteps; ++step) Step(step);
    OrExit(log_->AppendAll(std::move(batch_)));
  }

 private:
  void Add(journal::TrajectoryEntry entry) { batch_.push_back({id_, next_++, std::move(entry)}); }

  void Step(uint32_t step) {
    const uint64_t begin = position_;
    for (size_t i = 0; i < kSampled; ++i) {  // an entry a decode step
      journal::TrajectoryEntry entry;
      entry.mutable_sampled()->set_position(position_++);
      entry.mutable_sampled()->add_ids(ids_(random_));
      entry.mutable_sampled()->add_logprobs(-0.25f);
      Add(std::move(entry));
    }
    const std::string call = CallId(id_, step, 0);
    journal::TrajectoryEntry issued, done, fed;
    issued.mutable_issued()->set_call_id(call);
    issued.mutable_issued()->set_tool("sh");
    issued.mutable_issued()->set_arguments_json("{\"command\": \"echo $((6*7))\"}");
    issued.mutable_issued()->set_span_begin(begin);
    issued.mutable_issued()->set_span_end(position_);
    done.mutable_done()->set_call_id(call);
    done.mutable_done()->set_outcome(sandbox::OUTCOME_EXITED);
    done.mutable_done()->set_result_text("42");
    fed.mutable_fed()->set_position(position_);
    fed.mutable_fed()->add_call_ids(call);
    for (size_t i = 0; i < kFed; ++i) fed.mutable_fed()->add_ids(ids_(random_));
    position_ += kFed;
    Add(std::move(issued));
    Add(std::move(done));
    Add(std::move(fed));
  }

  replay::TrajectoryLog* const log_;
  const std::string id_;
  std::mt19937_64 random_;
  std::uniform_int_distribution<int32_t> ids_;
  uint64_t position_ = 0, next_ = 0;
  std::vector<replay::TrajectoryLog::Append> batch_;
};

uint64_t FileBytes(const std::string& directory) {
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory))
    if (entry.is_regular_file()) bytes += entry.file_size();
  return bytes;
}

// The system's copies of all files below `directory` are dropped, so that they are read again.
void DropCaches(const std::string& directory) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    const base::UniqueFd file(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
    if (file.valid()) {
      ::fdatasync(file.get());
      ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
    }
  }
}

std::unique_ptr<storage::Store> OpenStore(const std::string& path,
                                          std::vector<std::string> families) {
  storage::StoreOptions options;
  options.path = path;
  options.families = std::move(families);
  options.durability = storage::Durability::kOs;
  return OrExit(storage::Store::Open(options));
}

// ---- the engine's part, milliseconds for all of `states`

double Prefill(engine::Engine* engine, const std::vector<replay::TrajectoryState>& states) {
  const base::Stopwatch watch;
  for (const replay::TrajectoryState& state : states) {
    const auto sequence = engine->NewSequence(state.tokens);
    for (size_t fed = 0; fed < state.tokens.size();) {
      engine::StepItem item;
      item.sequence = sequence.get();
      item.tokens = absl::MakeConstSpan(state.tokens).subspan(fed, kPrefillChunk);
      fed += item.tokens.size();
      OrExit(engine->Step(absl::MakeSpan(&item, 1)));
    }
  }
  return watch.ElapsedMillis();
}

// All at one time, token by token where the model chose.
double Decode(engine::Engine* engine, const std::vector<replay::TrajectoryState>& states) {
  const base::Stopwatch watch;
  const engine::SamplingParams sampling;
  std::vector<std::unique_ptr<engine::Sequence>> sequences;
  std::vector<size_t> fed(states.size(), 0);
  for (const replay::TrajectoryState& state : states)
    sequences.push_back(engine->NewSequence(absl::MakeConstSpan(state.tokens).first(kPrompt)));
  while (true) {
    std::vector<engine::StepItem> items;
    for (size_t i = 0; i < states.size(); ++i) {
      const auto& mask = states[i].loss_mask;
      if (fed[i] == mask.size()) continue;
      size_t end = fed[i] + 1;
      if (mask[fed[i]] == 0) {
        while (end < mask.size() && mask[end] == 0) ++end;
      }
      engine::StepItem item;
      item.sequence = sequences[i].get();
      item.tokens = absl::MakeConstSpan(states[i].tokens).subspan(fed[i], end - fed[i]);
      item.sampling = &sampling;
      items.push_back(std::move(item));
      fed[i] = end;
    }
    if (items.empty()) return watch.ElapsedMillis();
    OrExit(engine->Step(absl::MakeSpan(items)));
  }
}

// Milliseconds of one bare process.
double SpawnMs() {
  constexpr int kTimes = 200;
  const base::Stopwatch watch;
  for (int i = 0; i < kTimes; ++i) {
    pid_t pid = 0;
    char program[] = "/bin/true";
    char* argv[] = {program, nullptr};
    if (::posix_spawn(&pid, program, nullptr, nullptr, argv, environ) != 0) {
      fmt::print(stderr, "bench_resume: cannot start {}\n", program);
      std::exit(1);
    }
    ::waitpid(pid, nullptr, 0);
  }
  return watch.ElapsedMillis() / kTimes;
}

void Trajectories(size_t count, const std::string& directory) {
  std::unique_ptr<engine::Engine> engine = OrExit(engine::Engine::Load(kTinyModel));
  {
    auto store = OpenStore(directory, replay::TrajectoryLogFamilies());
    auto log = OrExit(replay::TrajectoryLog::Open(store.get()));
    for (size_t i = 0; i < count; ++i) Writer(log.get(), i, engine->config().vocab_size).Write();
  }
  const uint64_t bytes = FileBytes(directory);
  DropCaches(directory);
  base::Stopwatch opening;
  auto store = OpenStore(directory, replay::TrajectoryLogFamilies());
  auto log = OrExit(replay::TrajectoryLog::Open(store.get()));
  const double open_ms = opening.ElapsedMillis();
  std::vector<replay::TrajectoryState> states;
  std::vector<double> read_us;
  for (size_t i = 0; i < count; ++i) {
    const base::Stopwatch watch;
    replay::TrajectoryState state = OrExit(replay::Fold(OrExit(log->Read(IdOf(i)))));
    read_us.push_back(static_cast<double>(watch.ElapsedMicros()));
    if (states.size() < kDecoded) states.push_back(std::move(state));
  }
  const double read_ms = std::accumulate(read_us.begin(), read_us.end(), 0.0) / 1000.0;
  const double each = static_cast<double>(count), some = static_cast<double>(states.size());
  const double prefill_ms = Prefill(engine.get(), states) / some * each;
  const double decode_ms = Decode(engine.get(), states) / some * each;
  const double tools_ms = SpawnMs() * kSteps * each;
  const double resume = open_ms + read_ms + prefill_ms, again = decode_ms + tools_ms;

  fmt::print("{} trajectories of {} steps, {} tokens each; the engine's part was measured on {}\n",
             count, kSteps, states[0].tokens.size(), states.size());
  fmt::print("{:<44}{:>12}\n", "", "seconds");
  fmt::print("{:<44}{:>12.3f}\n", "open the journal, nothing cached", open_ms / 1000);
  fmt::print("{:<44}{:>12.3f}   p50 {:.0f} us, p99 {:.0f} us a trajectory\n",
             "read and fold all logs", read_ms / 1000, Percentile(read_us, 0.5),
             Percentile(read_us, 0.99));
  fmt::print("{:<44}{:>12.1f}\n", "make their KV states again", prefill_ms / 1000);
  fmt::print("{:<44}{:>12.1f}\n", "resume: all of this", resume / 1000);
  fmt::print("{:<44}{:>12.1f}   of which calls {:.1f}\n", "run them again: decode and call",
             again / 1000, tools_ms / 1000);
  fmt::print("run again / resume: {:.1f}x; without the engine: {:.1f}x\n", again / resume,
             tools_ms / (open_ms + read_ms));
  fmt::print("journal: {:.0f} bytes a step, {:.1f} a token\n\n",
             static_cast<double>(bytes) / each / kSteps,
             static_cast<double>(bytes) / each / static_cast<double>(states[0].tokens.size()));
}

// ---- answers from the log of calls

sandbox::ExecuteRequest Request(size_t call) {
  sandbox::ExecuteRequest request;
  request.set_call_id(fmt::format("bench/000000/0/{}/0", call));
  request.set_sandbox_id("bench/000000/0");
  request.add_argv("/bin/sh");
  request.add_argv("-c");
  request.add_argv(fmt::format("echo $(({}*7))", call));
  return request;
}

// Microseconds of each answer: result and output of one call.
std::vector<double> Answer(replay::CallLog* log, size_t calls) {
  std::vector<size_t> order(calls);
  std::iota(order.begin(), order.end(), size_t{0});
  std::shuffle(order.begin(), order.end(), std::mt19937_64(1));
  std::vector<double> us;
  for (size_t call : order) {
    const sandbox::ExecuteRequest request = Request(call);
    const base::Stopwatch watch;
    const auto found = OrExit(log->Find(request));
    size_t bytes = 0;
    OrExit(log->ReadOutput(request.call_id(), [&bytes](const replay::journal::CallOutput& output) {
      bytes += output.data().size();
      return absl::OkStatus();
    }));
    us.push_back(static_cast<double>(watch.ElapsedMicros()));
    if (!found.result.has_value() || bytes != kResultBytes) {
      fmt::print(stderr, "bench_resume: a call lost its result\n");
      std::exit(1);
    }
  }
  return us;
}

void Calls(size_t count, const std::string& directory) {
  std::vector<double> memory, disk;
  {
    auto store = OpenStore(directory, replay::CallLogFamilies());
    auto log = OrExit(replay::CallLog::Open(store.get()));
    for (size_t i = 0; i < count; ++i) {
      replay::journal::CallIntent intent;
      *intent.mutable_request() = Request(i);
      intent.set_call_id(intent.request().call_id());
      intent.set_sandbox_id(intent.request().sandbox_id());
      OrExit(log->Begin(intent).status());
      OrExit(log->AppendOutput(Request(i).call_id(), sandbox::STREAM_STDOUT, 0,
                               std::string(kResultBytes, 'o'), 1 << 20));
      sandbox::Result result;
      result.set_outcome(sandbox::OUTCOME_EXITED);
      OrExit(log->Complete(Request(i).call_id(), result));
    }
    memory = Answer(log.get(), count);
  }
  DropCaches(directory);
  auto store = OpenStore(directory, replay::CallLogFamilies());
  auto log = OrExit(replay::CallLog::Open(store.get()));
  disk = Answer(log.get(), count);
  fmt::print("{:<44}{:>10}{:>10}{:>10}{:>14}\n",
             fmt::format("answer one of {} recorded calls", count), "p50 us", "p99 us", "bar us",
             "p50 / bar");
  const auto print = [](const char* name, const std::vector<double>& us, double bar) {
    const double p50 = Percentile(us, 0.5);
    fmt::print("{:<44}{:>10.1f}{:>10.1f}{:>10.0f}{:>14.2f}\n", name, p50, Percentile(us, 0.99), bar,
               p50 / bar);
  };
  print("from memory", memory, kMemoryBarUs);
  print("from a store just opened, nothing cached", disk, kDiskBarUs);
}

int Main(size_t count, const std::string& directory) {
  Trajectories(count, directory + "/trajectories");
  Calls(count, directory + "/calls");
  return 0;
}

}  // namespace
}  // namespace reprise::rollout

int main(int argc, char** argv) {
  const size_t count = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1000;
  if (argc > 2) return reprise::rollout::Main(count, argv[2]);
  const reprise::base::ScratchDir scratch("resume");
  return reprise::rollout::Main(count, scratch.path());
}
