// What a call of the function tier costs, against fork and exec (the floor), bwrap and runc (the
// rivals): the same `true` run by all of them, in turns within one run, so that the ratios hold
// on a machine that does other things too. Rivals that are not installed are left out.
//
// Usage: bench_function_call [--calls N] [--runc-calls N] [--parallel N] [--seconds S]
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "sandboxd/function/function_tier.h"
#include "tests/bench/support.h"
#include "tests/security/tier_call.h"

extern char** environ;

namespace reprise::sandboxd {
namespace {

constexpr char kTrue[] = "/bin/true";
constexpr int kRoundSize = 20;  // calls of one kind before the next has its turn

struct Options {
  int calls = 400, runc_calls = 40, parallel = 4, seconds = 4;
};

struct Kind {
  std::string name;
  std::function<bool()> call;
  int calls = 0;
  std::vector<double> us;
};

bool RunProgram(const std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  pid_t pid = 0;
  if (::posix_spawnp(&pid, argv[0], nullptr, nullptr, argv.data(), environ) != 0) return false;
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool ForkAndExec() {
  const pid_t pid = ::fork();
  if (pid == 0) {
    char* argv[] = {const_cast<char*>(kTrue), nullptr};
    ::execv(kTrue, argv);
    ::_exit(127);
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool Installed(const std::string& program) {
  return RunProgram({"/bin/sh", "-c", "command -v " + program + " >/dev/null"});
}

// An OCI bundle over the host's programs, as tight as runc makes one by default.
bool MakeBundle(const std::string& dir) {
  const std::string script =
      "cd " + dir +
      " && mkdir rootfs && runc spec && sed -i 's/\"terminal\": true/\"terminal\": false/; "
      "s#\"sh\"#\"" +
      kTrue + "\"#' config.json && mkdir rootfs/bin rootfs/proc rootfs/dev rootfs/sys && cp -L " +
      kTrue + " rootfs/bin/ && for l in $(ldd " + kTrue +
      " | grep -o '/[^ ]*'); do mkdir -p rootfs$(dirname $l) && cp -L $l rootfs$l; done";
  return RunProgram({"/bin/sh", "-c", script});
}

class TierUnderTest {
 public:
  TierUnderTest(const std::string& state, int parallel) {
    FunctionTierOptions options;
    options.state_dir = state;
    char self[4096] = {};
    const ssize_t length = ::readlink("/proc/self/exe", self, sizeof(self) - 1);
    const std::string path(self, length > 0 ? static_cast<size_t>(length) : 0);
    const std::string dir = path.substr(0, path.rfind('/'));
    options.helper_dir = dir.substr(0, dir.rfind('/')) + "/bin";
    options.pool = std::max(4, parallel);
    auto tier = MakeFunctionTier(options);
    if (!tier.ok()) {
      why_ = std::string(tier.status().message());
      return;
    }
    tier_ = *std::move(tier);
    const sandbox::TierInfo info = tier_->Describe();
    why_ = info.reason();
    usable_ = info.usable();
    limits_ = info.default_limits();
    spec_.set_tier(sandbox::TIER_FUNCTION);
    request_ = sandbox::ExecuteRequest();
    request_.set_call_id("bench");
    request_.add_argv(kTrue);
    request_ = ResolveRequest(request_, spec_, limits_);
  }
  ~TierUnderTest() {
    if (tier_ != nullptr) tier_->Shutdown();
  }
  bool usable() const { return usable_; }
  const std::string& why() const { return why_; }

  // One call, from the reservation to its result.
  bool Call() {
    const SandboxRef sandbox{"bench", &spec_, "function"};
    auto placement = tier_->Reserve(sandbox);
    if (!placement.ok()) return false;
    auto record = std::make_shared<CallRecord>();
    auto running =
        tier_->Start(sandbox, *placement, request_, std::make_unique<CallRecord::Sink>(record));
    if (!running.ok()) return false;
    record->Run(*std::move(running));
    if (!record->WaitEnd() || record->result().outcome() != sandbox::OUTCOME_EXITED) return false;
    record->call()->Release();
    record->Drop();
    return true;
  }

 private:
  std::unique_ptr<Substrate> tier_;
  bool usable_ = false;
  std::string why_;
  sandbox::Limits limits_;
  sandbox::SandboxSpec spec_;
  sandbox::ExecuteRequest request_;
};

void Latencies(std::vector<Kind>& kinds, bool rest) {
  bool left = true;
  while (left) {
    left = false;
    for (Kind& kind : kinds) {
      for (int i = 0; i < kRoundSize && static_cast<int>(kind.us.size()) < kind.calls; ++i) {
        // The pool fills again between two calls, as it does between two steps of a rollout.
        if (rest) ::usleep(20'000);
        const base::Stopwatch watch;
        if (!kind.call()) {
          fmt::print("{}: a call failed\n", kind.name);
          std::exit(1);
        }
        kind.us.push_back(static_cast<double>(watch.ElapsedMicros()));
      }
      left |= static_cast<int>(kind.us.size()) < kind.calls;
    }
  }
}

double Throughput(const Kind& kind, int parallel, int seconds) {
  std::atomic<int> done{0};
  std::atomic<bool> failed{false};
  const base::Stopwatch watch;
  std::vector<std::thread> threads;
  for (int i = 0; i < parallel; ++i) {
    threads.emplace_back([&] {
      while (watch.ElapsedMillis() < seconds * 1000.0 && !failed) {
        if (!kind.call()) failed = true;
        ++done;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return failed ? 0 : done / (watch.ElapsedMillis() / 1000.0);
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const int value = std::atoi(argv[i + 1]);
    if (name == "--calls") options.calls = value;
    if (name == "--runc-calls") options.runc_calls = value;
    if (name == "--parallel") options.parallel = value;
    if (name == "--seconds") options.seconds = value;
  }
  base::SetLogLevel(base::LogLevel::kError);
  base::ScratchDir state("reprise-bench"), bundle("reprise-bench");
  TierUnderTest tier(state.path(), options.parallel);
  if (!tier.usable()) {
    fmt::print(stderr, "bench_function_call: {}\n", tier.why());
    return 1;
  }
  std::vector<Kind> kinds = {{"function tier", [&] { return tier.Call(); }, options.calls, {}},
                             {"fork+exec", ForkAndExec, options.calls, {}}};
  if (Installed("bwrap")) {
    kinds.push_back({"bwrap --unshare-all",
                     [] {
                       return RunProgram({"bwrap", "--unshare-all", "--ro-bind", "/", "/", kTrue});
                     },
                     options.calls / 4,
                     {}});
  }
  std::atomic<int> next{0};
  if (Installed("runc") && MakeBundle(bundle.path())) {
    kinds.push_back({"runc run",
                     [&] {
                       return RunProgram({"runc", "run", "--bundle", bundle.path(),
                                          fmt::format("reprise-bench-{}-{}", ::getpid(), next++)});
                     },
                     options.runc_calls,
                     {}});
  }
  fmt::print("tier: {}\n", tier.why());
  fmt::print("{:<22}{:>10}{:>10}{:>10}{:>14}{:>14}{:>12}{:>14}\n", "one call of true", "p50 us",
             "p90 us", "p99 us", "back-to-back", "b-t-b p99 us",
             fmt::format("calls/s x{}", options.parallel), "p50 / ours");
  std::vector<Kind> busy = kinds;
  Latencies(kinds, /*rest=*/true);
  Latencies(busy, /*rest=*/false);
  const double ours = Percentile(kinds[0].us, 0.5);
  for (size_t i = 0; i < kinds.size(); ++i) {
    const Kind& kind = kinds[i];
    fmt::print("{:<22}{:>10.0f}{:>10.0f}{:>10.0f}{:>14.0f}{:>14.0f}{:>12.0f}{:>13.2f}x\n",
               kind.name, Percentile(kind.us, 0.5), Percentile(kind.us, 0.9),
               Percentile(kind.us, 0.99), Percentile(busy[i].us, 0.5), Percentile(busy[i].us, 0.99),
               Throughput(kind, options.parallel, options.seconds),
               Percentile(kind.us, 0.5) / ours);
  }
  return 0;
}

}  // namespace
}  // namespace reprise::sandboxd

int main(int argc, char** argv) { return reprise::sandboxd::Main(argc, argv); }
