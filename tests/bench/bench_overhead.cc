// What the rollout loop costs over the engine alone: jobs with tools that take no time, through
// scheduler and journal, beside a bare loop that makes the engine decode exactly the same tokens,
// alternately in one process; and what the journal costs at each durability. Bars: the loop keeps
// 95 % of the bare engine's tokens a second, and fsync costs at most 3 % over no journal on disk.
//   bench_overhead [DIRECTORY]     the journals' directory; default: a scratch directory
#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/fd.h"
#include "engine/engine.h"
#include "replay/trajectory_log.h"
#include "replay/trajectory_state.h"
#include "rollout/job_table.h"
#include "rollout/sandboxes.h"
#include "storage/store.h"
#include "tests/bench/support.h"

namespace reprise::rollout {
namespace {

const char kTinyModel[] = REPRISE_SOURCE_DIR "/examples/tiny-v4";
constexpr size_t kSequences = 64;
constexpr int kGroupSize = 4;
constexpr int kRounds = 7;  // the median of each is reported
constexpr double kLoopBar = 0.95, kLogBar = 0.97;

// Answers every call at once with the same number.
class InstantSandboxes final : public Sandboxes {
 public:
  absl::Status Create(const std::string&, const sandbox::SandboxSpec&) override {
    return absl::OkStatus();
  }
  absl::StatusOr<CallOutput> Execute(const sandbox::ExecuteRequest&) override {
    CallOutput output;
    output.result.set_outcome(sandbox::OUTCOME_EXITED);
    output.stdout_data = "42\n";
    return output;
  }
  absl::Status Stop(const std::string&) override { return absl::OkStatus(); }
  absl::Status Fork(const std::string&, const std::string&, const std::string&) override {
    return absl::OkStatus();
  }
  absl::Status Forget(const std::string&) override { return absl::OkStatus(); }
  absl::Status Pause(const std::string&) override { return absl::OkStatus(); }
  void Shutdown() override {}
};

std::string JobText(const std::string& id) {
  return fmt::format(
      "id = \"{}\"\nmodel = \"{}\"\ntasks = \"{}/tasks/train.jsonl\"\nlimit = {}\ngroup_size = {}\n"
      "seed = 7\nthinking = \"chat\"\n[limits]\nmax_in_flight = {}\n[[tools]]\ndefinition = "
      "\"{}/tool_sh.json\"\ncommand = [\"/bin/sh\", \"-c\", \"{{command}}\"]\n",
      id, kTinyModel, kTinyModel, kSequences / kGroupSize, kGroupSize, kSequences, kTinyModel);
}

// A whole loop on a journal of its own.
class Loop {
 public:
  Loop(const std::string& directory, storage::Durability durability) {
    storage::StoreOptions options;
    options.path = directory;
    options.families = replay::TrajectoryLogFamilies();
    options.durability = durability;
    store_ = OrExit(storage::Store::Open(options));
    log_ = OrExit(replay::TrajectoryLog::Open(store_.get()));
    jobs_ = std::make_unique<JobTable>(log_.get(), journal::DURABILITY_FSYNC, &sandboxes_,
                                       engine::EngineOptions(), SchedulerOptions());
  }

  // Seconds of one job of this id, from its submission to its end.
  double Run(const std::string& id) {
    base::Stopwatch stopwatch;
    std::shared_ptr<JobRun> run = OrExit(jobs_->Submit(JobText(id), "/", "", ""));
    for (uint64_t seen = run->version(); run->Is(journal::JOB_STATE_RUNNING);
         seen = run->version()) {
      run->WaitChange(seen, absl::Seconds(1));
    }
    const double seconds = static_cast<double>(stopwatch.ElapsedMicros()) / 1e6;
    if (run->Is(journal::JOB_STATE_COMPLETED)) return seconds;
    fmt::print(stderr, "bench_overhead: the job ended as {}: {}\n", StateName(run->state()),
               run->record().message());
    std::exit(1);
  }
  std::vector<replay::TrajectoryState> States(const std::string& id) {
    std::vector<replay::TrajectoryState> states;
    std::shared_ptr<JobRun> run = OrExit(jobs_->Find(id));
    for (size_t i = 0; i < run->size(); ++i)
      states.push_back(OrExit(replay::Fold(OrExit(log_->Read(run->trajectory_id(i))))));
    return states;
  }

 private:
  InstantSandboxes sandboxes_;
  std::unique_ptr<storage::Store> store_;
  std::unique_ptr<replay::TrajectoryLog> log_;
  std::unique_ptr<JobTable> jobs_;
};

// One trajectory that the bare engine makes again.
struct Bare {
  const replay::TrajectoryState* state = nullptr;
  std::unique_ptr<engine::Sequence> sequence;
  engine::SamplingParams sampling;
  size_t known = 0;  // tokens that were given or sampled

  // Past what the environment gave.
  void Give() {
    while (known < state->tokens.size() && state->loss_mask[known] == 0) ++known;
  }
  bool done() const { return known == state->tokens.size(); }
};

// Seconds to make every sampled token of `states` again, as the scheduler batches them.
double RunBare(engine::Engine* engine, const std::vector<replay::TrajectoryState>& states) {
  base::Stopwatch stopwatch;
  std::vector<Bare> all(states.size());
  for (size_t i = 0; i < states.size(); ++i) {
    all[i].state = &states[i];
    all[i].sampling = {.seed = states[i].start.seed()};
    all[i].Give();
    all[i].sequence = engine->NewSequence(
        absl::MakeConstSpan(states[i].tokens).subspan(0, states[i].prompt_len()));
  }
  while (true) {
    std::vector<engine::StepItem> items;
    std::vector<Bare*> owners;
    size_t budget = kStepTokens;
    for (bool prefill : {false, true}) {
      for (Bare& one : all) {
        if (one.done() || budget == 0) continue;
        const size_t fed = static_cast<size_t>(one.sequence->length());
        const size_t left = one.known - fed;
        if ((left > 1) != prefill) continue;
        const size_t count = std::min({left, kPrefillChunk, budget});
        budget -= count;
        engine::StepItem item;
        item.sequence = one.sequence.get();
        item.tokens = absl::MakeConstSpan(one.state->tokens).subspan(fed, count);
        item.sampling = count == left ? &one.sampling : nullptr;
        items.push_back(std::move(item));
        owners.push_back(&one);
      }
    }
    if (items.empty()) break;
    if (absl::Status status = engine->Step(absl::MakeSpan(items)); !status.ok()) {
      fmt::print(stderr, "bench_overhead: {}\n", status.ToString());
      std::exit(1);
    }
    for (size_t i = 0; i < items.size(); ++i) {
      if (items[i].sampling == nullptr) continue;
      if (items[i].sampled_id != owners[i]->state->tokens[owners[i]->known]) {
        fmt::print(stderr, "bench_overhead: the bare engine sampled another token\n");
        std::exit(1);
      }
      ++owners[i]->known;
      owners[i]->Give();
    }
  }
  return static_cast<double>(stopwatch.ElapsedMicros()) / 1e6;
}

int Main(const std::string& directory) {
  const std::array<std::pair<const char*, storage::Durability>, 3> kinds = {
      {{"none", storage::Durability::kNone},
       {"os", storage::Durability::kOs},
       {"fsync", storage::Durability::kFsync}}};
  std::vector<std::unique_ptr<Loop>> loops;
  for (const auto& [name, durability] : kinds)
    loops.push_back(std::make_unique<Loop>(fmt::format("{}/{}", directory, name), durability));
  std::unique_ptr<engine::Engine> engine = OrExit(engine::Engine::Load(kTinyModel));
  // Once for everything that is loaded at the first use, and to know what the bare engine repeats.
  for (auto& loop : loops) loop->Run("warm");
  const std::vector<replay::TrajectoryState> states = loops[0]->States("warm");
  RunBare(engine.get(), states);
  uint64_t sampled = 0, calls = 0;
  for (const replay::TrajectoryState& state : states) {
    sampled += static_cast<uint64_t>(
        std::count(state.loss_mask.begin(), state.loss_mask.end(), uint8_t{1}));
    calls += state.calls.size();
  }
  std::vector<double> bare;
  std::array<std::vector<double>, 3> whole, against_bare, against_none;
  for (int round = 0; round < kRounds; ++round) {
    std::array<double, 3> seconds{};
    bare.push_back(RunBare(engine.get(), states));
    for (size_t i = 0; i < kinds.size(); ++i) {
      // In another order each round.
      const size_t kind = (i + static_cast<size_t>(round)) % kinds.size();
      seconds[kind] = loops[kind]->Run(fmt::format("round-{}", round));
    }
    for (size_t i = 0; i < kinds.size(); ++i) {
      whole[i].push_back(seconds[i]);
      against_bare[i].push_back(bare.back() / seconds[i]);
      against_none[i].push_back(seconds[0] / seconds[i]);
    }
  }
  fmt::print(
      "{} sequences at one time, {} tokens sampled, {} calls that take no time, journals in {}\n",
      kSequences, sampled, calls, directory);
  fmt::print("{:28}{:>14}{:>16}{:>20}\n", "", "tokens/s", "of the engine's", "of no log on disk");
  fmt::print("{:28}{:14.0f}\n", "engine alone",
             static_cast<double>(sampled) / Percentile(bare, 0.5));
  for (size_t i = 0; i < kinds.size(); ++i) {
    fmt::print("{:28}{:14.0f}{:15.1f}%{:19.1f}%\n", fmt::format("rollout loop, {}", kinds[i].first),
               static_cast<double>(sampled) / Percentile(whole[i], 0.5),
               100 * Percentile(against_bare[i], 0.5), 100 * Percentile(against_none[i], 0.5));
  }
  const double loop = Percentile(against_bare[2], 0.5), log = Percentile(against_none[2], 0.5);
  fmt::print("bars: loop with fsync >= {:.0f} % of the engine: {}; fsync >= {:.0f} % of none: {}\n",
             100 * kLoopBar, loop >= kLoopBar ? "met" : "missed", 100 * kLogBar,
             log >= kLogBar ? "met" : "missed");
  return 0;
}

}  // namespace
}  // namespace reprise::rollout

int main(int argc, char** argv) {
  if (argc > 1) return reprise::rollout::Main(argv[1]);
  const reprise::base::ScratchDir scratch("overhead");
  return reprise::rollout::Main(scratch.path());
}
