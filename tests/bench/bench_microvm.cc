// What a microVM costs to start: plain QEMU (the floor of a boot: the same kernel, busybox that
// powers off at once), our boot from nothing, and our clone of a saved template, under the same
// accelerator and in turns within one run, so that the ratios hold on a machine that does other
// things too. Starts are measured to the answer of the create, when the agent listens, and to the
// end of a first command; the floor to the end of its machine.
//
// Usage: bench_microvm [--boots N] [--clones N]
#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "sandboxd/limits.h"
#include "sandboxd/microvm/accelerator.h"
#include "sandboxd/microvm/box.h"
#include "sandboxd/microvm/initramfs.h"
#include "sandboxd/microvm/microvm_tier.h"
#include "tests/bench/support.h"
#include "tests/security/tier_call.h"

extern char** environ;

namespace reprise::sandboxd {
namespace {

constexpr char kQemu[] = "/usr/bin/qemu-system-x86_64";
constexpr uint64_t kMemoryBytes = 128 << 20;

bool RunProgram(const std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t quiet;
  posix_spawn_file_actions_init(&quiet);
  for (const int fd : {0, 1, 2})
    posix_spawn_file_actions_addopen(&quiet, fd, "/dev/null", O_RDWR, 0);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, argv[0], &quiet, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&quiet);
  int status = 0;
  while (error == 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return error == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

std::string BinDir() {
  char self[4096] = {};
  const ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
  const std::string path(self, length > 0 ? static_cast<size_t>(length) : 0);
  const std::string dir = path.substr(0, path.rfind('/'));
  return dir.substr(0, dir.rfind('/')) + "/bin";
}

class TierUnderTest {
 public:
  TierUnderTest(const std::string& state, bool snapshots) {
    MicrovmTierOptions options;
    options.state_dir = state;
    options.helper_dir = BinDir();
    options.snapshots = snapshots;
    options.probe = true;
    auto tier = MakeMicrovmTier(options);
    if (!tier.ok()) return;
    tier_ = *std::move(tier);
    spec_.set_tier(sandbox::TIER_MICROVM);
    spec_.mutable_limits()->set_memory_bytes(kMemoryBytes);
    request_.set_call_id("bench");
    request_.add_argv("/bin/true");
    request_ = ResolveRequest(request_, spec_, tier_->Describe().default_limits());
  }
  sandbox::TierInfo Describe() {
    return tier_ == nullptr ? sandbox::TierInfo() : tier_->Describe();
  }

  // Milliseconds from the request; negative when it failed.
  struct Times {
    double create = -1, command = -1;  // answered; its first command has ended
  };
  Times Start() {
    const base::Stopwatch watch;
    auto placement = tier_->CreateSandbox("bench", spec_, nullptr);
    if (!placement.ok()) {
      fmt::print(stderr, "bench_microvm: {}\n", std::string(placement.status().message()));
      return {};
    }
    Times times;
    times.create = watch.ElapsedMillis();
    const SandboxRef sandbox{"bench", &spec_, *placement};
    auto record = std::make_shared<CallRecord>();
    auto running =
        tier_->Start(sandbox, *placement, request_, std::make_unique<CallRecord::Sink>(record));
    if (running.ok()) {
      record->Run(*std::move(running));
      if (record->WaitEnd() && record->result().outcome() == sandbox::OUTCOME_EXITED)
        times.command = watch.ElapsedMillis();
      record->call()->Release();
      record->Drop();
    }
    return tier_->StopSandbox(sandbox).ok() ? times : Times();
  }

 private:
  std::unique_ptr<Substrate> tier_;
  sandbox::SandboxSpec spec_;
  sandbox::ExecuteRequest request_;
};

// QEMU by hand: kernel and an initramfs with busybox, which powers off. From spawn to exit.
class PlainQemu {
 public:
  PlainQemu(const std::string& dir, std::string accelerator)
      : initramfs_(dir + "/busybox.cpio"), accelerator_(std::move(accelerator)) {
    made_ = RunProgram({"/bin/sh", "-c",
                        fmt::format("mkdir -p {0}/root/bin {0}/root/dev && cp /bin/busybox "
                                    "{0}/root/bin/ && cd {0}/root && find . | /bin/busybox cpio "
                                    "-o -H newc > {1}",
                                    dir, initramfs_)});
  }
  double Start(uint64_t tsc_khz) const {
    const bool kvm = accelerator_ == "kvm";
    std::string words = "quiet panic=-1 reboot=t rdinit=/bin/busybox";
    if (!kvm) words += fmt::format(" tsc_early_khz={} tsc=reliable", tsc_khz);
    const base::Stopwatch watch;
    const bool ran = RunProgram({kQemu,
                                 "-M",
                                 "microvm",
                                 "-accel",
                                 accelerator_,
                                 "-cpu",
                                 kvm ? "host" : "max",
                                 "-m",
                                 "256M",
                                 "-nodefaults",
                                 "-no-user-config",
                                 "-display",
                                 "none",
                                 "-no-reboot",
                                 "-kernel",
                                 BinDir() + "/guest/vmlinux",
                                 "-initrd",
                                 initramfs_,
                                 "-append",
                                 words + " -- poweroff -f"});
    return made_ && ran ? watch.ElapsedMillis() : -1;
  }

 private:
  const std::string initramfs_, accelerator_;
  bool made_ = false;
};

int Run(int boots, int clones) {
  const base::ScratchDir state("reprise-bench-microvm");
  // Both remember the accelerator in the same place: the second does not probe.
  TierUnderTest cold(state.path() + "/tier", /*snapshots=*/false);
  const sandbox::TierInfo info = cold.Describe();
  if (!info.usable()) {
    fmt::print("bench_microvm: the microvm tier is not usable here: {}\n", info.reason());
    return 0;
  }
  TierUnderTest warm(state.path() + "/tier", /*snapshots=*/true);
  microvm::AcceleratorProbe known(state.path() + "/tier/microvm/accelerator", kQemu, {});
  const microvm::Accelerator accelerator = known.Known().value_or(microvm::Accelerator());
  const PlainQemu plain(state.path(), accelerator.name);
  fmt::print("{}\n", info.reason());

  const double first = warm.Start().command;
  std::vector<double> floor, boot, boot_command, clone, clone_command;
  auto take = [](const TierUnderTest::Times& times, std::vector<double>* create,
                 std::vector<double>* command) {
    create->push_back(times.create);
    command->push_back(times.command);
  };
  for (int i = 0; i < boots; ++i) {
    floor.push_back(plain.Start(accelerator.tsc_khz));
    take(cold.Start(), &boot, &boot_command);
    for (int j = 0; j < clones / boots; ++j) take(warm.Start(), &clone, &clone_command);
  }
  for (const std::vector<double>* kind : {&floor, &boot_command, &clone_command}) {
    if (std::any_of(kind->begin(), kind->end(), [](double ms) { return ms < 0; })) {
      fmt::print(stderr, "bench_microvm: a start failed\n");
      return 1;
    }
  }
  fmt::print("{:34}{:>10}{:>10}{:>10}{:>8}\n", "milliseconds", "p50", "p95", "least", "n");
  auto row = [](const char* name, const std::vector<double>& ms) {
    fmt::print("{:34}{:10.0f}{:10.0f}{:10.0f}{:8}\n", name, Percentile(ms, 0.5),
               Percentile(ms, 0.95), *std::min_element(ms.begin(), ms.end()), ms.size());
  };
  row("floor: qemu -M microvm, poweroff", floor);
  row("ours, from nothing", boot);
  row("ours, from nothing, and a command", boot_command);
  row("ours, clone", clone);
  row("ours, clone, and a command", clone_command);
  fmt::print("the first of its kind (boots and saves the template): {:.0f} ms\n", first);
  fmt::print("ours from nothing / floor  {:6.2f}\n",
             Percentile(boot, 0.5) / Percentile(floor, 0.5));
  fmt::print("from nothing / clone       {:6.2f}   (bar: 10)\n",
             Percentile(boot, 0.5) / Percentile(clone, 0.5));
  return 0;
}

}  // namespace
}  // namespace reprise::sandboxd

int main(int argc, char** argv) {
  int boots = 3, clones = 15;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--boots") == 0) boots = std::max(1, std::atoi(argv[i + 1]));
    if (std::strcmp(argv[i], "--clones") == 0) clones = std::max(1, std::atoi(argv[i + 1]));
  }
  reprise::base::SetLogLevel(reprise::base::LogLevel::kWarn);
  return reprise::sandboxd::Run(boots, std::max(boots, clones));
}
