// sandboxd: runs sandboxes and their calls, and remembers both. Start: flags, signals, daemon; end:
// SIGTERM or SIGINT.
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "base/failpoint.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/log.h"
#include "sandboxd/daemon.h"

namespace {

using reprise::base::LogLevel;
using reprise::sandboxd::Daemon;
using reprise::sandboxd::DaemonOptions;

const std::map<std::string, LogLevel> kLogLevels = {{"debug", LogLevel::kDebug},
                                                    {"info", LogLevel::kInfo},
                                                    {"warn", LogLevel::kWarn},
                                                    {"error", LogLevel::kError},
                                                    {"off", LogLevel::kOff}};
constexpr int kExitFailed = 1, kExitUsage = 2;

int Fail(int code, const absl::Status& status) {
  fmt::print(stderr, "sandboxd: {}\n", status.message());
  return code;
}

// Blocked here, before any thread exists, and read by Wait: no handler, no global.
sigset_t BlockEndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return signals;
}

absl::Status Wait(const sigset_t& signals) {
  reprise::base::UniqueFd fd(::signalfd(-1, &signals, SFD_CLOEXEC));
  if (!fd.valid()) return reprise::base::ErrnoStatus(errno, "cannot make a signalfd");
  signalfd_siginfo info;
  while (::read(fd.get(), &info, sizeof(info)) != sizeof(info)) {
    if (errno != EINTR) return reprise::base::ErrnoStatus(errno, "cannot wait for a signal");
  }
  reprise::base::LogInfo(
      fmt::format("sandboxd ends on signal {}; running calls live on", info.ssi_signo));
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Runs sandboxes and their calls, and remembers both.", "sandboxd");
  DaemonOptions options;
  std::string state, durability = "fsync", log_level = "info";
  std::vector<std::string> fail_points;
  app.add_option("--state", state, "state directory; the journal lies in STATE/sandboxd")
      ->required();
  app.add_option("--listen", options.listen,
                 "unix:/path or HOST:PORT; default unix:STATE/sandboxd.sock");
  app.add_option("--http", options.http,
                 "HOST:PORT for HTTP clients (E2B, /run_code, SWE-ReX); default: none");
  app.add_option("--http-cert", options.http_cert, "certificate chain (PEM) for TLS on --http");
  app.add_option("--http-key", options.http_key, "private key (PEM) of --http-cert");
  app.add_option("--token-file", options.token_file, "bearer token that TCP clients must show");
  app.add_option("--durability", durability, "when a record counts as written: fsync, os or none")
      ->capture_default_str();
  app.add_flag("--image-chunks", options.chunk_images,
               "keep images in chunks and read them on demand (container tier)");
  app.add_option("--image-cold", options.image_cold,
                 "cold tier of --image-chunks: a directory or s3://BUCKET?region=REGION");
  app.add_option("--image-disk-bytes", options.image_disk_bytes,
                 "bound of --image-chunks on local disk");
  app.add_option("--bind-root", options.bind_roots,
                 "host directory below which sandboxes may bind");
  app.add_option("--function-pool", options.function_pool, "ready workers of the function tier")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  app.add_option("--function-max", options.function_max, "workers of the function tier in all")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  app.add_option("--sandboxes-max", options.sandboxes_max,
                 "sandboxes at one time, over all tiers; more are refused")
      ->capture_default_str()
      ->check(CLI::Range(1, 1'000'000));
  app.add_option("--memory-max", options.memory_bytes_max,
                 "bound of the memory limits of all live sandboxes together, e.g. 64gb; what is above "
                 "it is refused; default: none")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->type_name("BYTES");
  app.add_flag("--e2b-internet", options.e2b_internet,
               "E2B's allow_internet_access, which its clients send by themselves, opens every "
               "public address; without: only network.allowOut opens anything");
  app.add_option("--resolver", options.resolver,
                 "ADDRESS[:PORT] that the DNS of sandboxes with a network asks; default: the first "
                 "nameserver of /etc/resolv.conf");
  app.add_option("--containerd", options.containerd_address,
                 "containerd's socket; \"\" turns the container tier off")
      ->capture_default_str();
  app.add_option("--qemu", options.qemu,
                 "QEMU of the microvm and vm tiers; \"\" turns them off")
      ->capture_default_str();
  app.add_option("--firecracker", options.firecracker, "Firecracker of the microvm tier")
      ->capture_default_str();
  app.add_option("--vmm", options.vmm,
                 "what runs microVMs: qemu, firecracker, or auto (Firecracker where it is and KVM "
                 "runs guests)")
      ->capture_default_str()
      ->check(CLI::IsMember({"qemu", "firecracker", "auto"}));
  app.add_option("--guest-dir", options.guest_dir,
                 "guest kernel, as scripts/guest-kernel makes it; default: HELPER_DIR/guest");
  app.add_option("--machine-pool", options.machine_pool,
                 "machines that wait for a sandbox, of each kind that was wanted lately")
      ->capture_default_str()
      ->check(CLI::Range(0, 64));
  app.add_option("--machine-pool-bytes", options.machine_pool_bytes,
                 "memory that those of a tier may have of their own")
      ->capture_default_str();
  app.add_option("--helper-dir", options.helper_dir,
                 "where the helper programs are; default: beside this program");
  app.add_option("--log-level", log_level, "debug, info, warn, error or off")
      ->capture_default_str()
      ->check(CLI::IsMember(&kLogLevels));
  app.add_option("--fail-point", fail_points,
                 "NAME:N kills this process at the N-th passage (crash tests)");
  app.set_config("--config", "", "TOML file with any of these options");
  bool print_config = false;
  app.add_flag("--print-config", print_config, "print the configuration and exit")
      ->configurable(false);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    return Fail(kExitUsage,
                absl::InvalidArgumentError(fmt::format("{}: see --help", error.what())));
  }
  if (print_config) {
    std::fputs(app.config_to_str(/*default_also=*/true, /*write_description=*/true).c_str(),
               stdout);
    return 0;
  }
  absl::StatusOr<reprise::storage::Durability> parsed =
      reprise::storage::ParseDurability(durability);
  if (!parsed.ok()) return Fail(kExitUsage, parsed.status());
  options.durability = *parsed;
  for (const std::string& point : fail_points) {
    if (absl::Status status = reprise::base::ArmFailPoint(point); !status.ok())
      return Fail(kExitUsage, status);
  }
  std::error_code ignored;
  state = std::filesystem::absolute(state, ignored).string();
  options.state_dir = state + "/sandboxd";
  if (options.listen.empty()) options.listen.push_back(fmt::format("unix:{}/sandboxd.sock", state));

  reprise::base::SetLogLevel(kLogLevels.at(log_level));
  sigset_t signals = BlockEndSignals();
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(options);
  if (!daemon.ok()) return Fail(kExitFailed, daemon.status());
  absl::Status ended = Wait(signals);
  daemon->reset();
  return ended.ok() ? 0 : Fail(kExitFailed, ended);
}
