// rolloutd: the rollout daemon. Start order: flags, fail points, the daemon, then one job or a wait
// for a signal.
#include <fmt/format.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>

#include "base/failpoint.h"
#include "base/log.h"
#include "engine/parallel/rank_options.h"
#include "rollout/daemon.h"
#include "rollout/kv_options.h"
#include "rollout/retention_flags.h"
#include "rollout/run_job.h"
#include "rollout/text.h"

namespace {

using reprise::base::LogError;
using reprise::base::LogInfo;

int Fail(const absl::Status& status) {
  LogError(reprise::rollout::Message(status));
  return 1;
}

// Waits for SIGINT or SIGTERM, which every thread was started with blocked.
void WaitForSignal(const sigset_t& signals) {
  int signal = 0;
  sigwait(&signals, &signal);
  LogInfo(fmt::format("signal {}, stopping", signal));
}

}  // namespace

int main(int argc, char** argv) {
  reprise::rollout::DaemonOptions options;
  reprise::rollout::RunJobOptions job;
  std::string durability = "fsync", state;
  std::vector<std::string> fail_points;
  bool print_config = false;
  options.listen = {};
  CLI::App app("Generates rollouts: decodes, runs tools through sandboxd, journals every token.");
  app.add_option("--state", state, "state directory; the journal lies in STATE/rolloutd")
      ->required();
  app.add_option("--listen", options.listen,
                 "unix:/path, repeatable; default unix:STATE/rolloutd.sock");
  app.add_option("--sandboxd", options.sandbox_address,
                 "address of sandboxd; default unix:STATE/sandboxd.sock");
  app.add_option("--durability", durability, "fsync, os or none")->capture_default_str();
  app.add_option("--threads", options.threads, "engine threads, 0 = one a core")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  reprise::engine::AddRankOptions(app, options.parallel);
  reprise::rollout::AddKvOptions(app, options.kv_bytes, options.prefix_disk);
  reprise::rollout::AddRetentionFlags(app, options.retention);
  app.add_option("--http", options.http,
                 "HOST:PORT for HTTP clients (OpenAI's API, SGLang's /generate); default: none");
  app.add_option("--http-cert", options.http_cert, "certificate chain (PEM) for TLS on --http");
  app.add_option("--http-key", options.http_key, "private key (PEM) of --http-cert");
  app.add_option("--token-file", options.token_file, "bearer token that clients of --http must show");
  app.add_option("--http-requests", options.http_requests,
                 "requests under way on --http at one time, 429 above")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--model", options.models,
                 "checkpoint directory that --http serves under its last part; repeatable");
  app.add_option("--thinking", options.thinking,
                 "thinking or chat: the mode of requests to --http that do not choose")
      ->check(CLI::IsMember({"thinking", "chat"}))
      ->capture_default_str();
  app.add_option("--job", job.job_file, "run this job file to its end, export it, and exit");
  app.add_option("--job-id", job.job_id, "with --job: another id than the file's");
  app.add_option("--out", job.out_dir, "with --job: directory for trajectories.jsonl");
  app.add_flag("--without-timing", job.without_timing,
               "with --job: leave out the fields that differ between two runs");
  app.add_option("--fail-point", fail_points,
                 "NAME:N kills this process at the N-th passage (crash tests)");
  app.add_flag("--print-config", print_config, "print the options as they are in force, and exit");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (job.job_file.empty() != job.out_dir.empty()) {
    std::cerr << "rolloutd: --job and --out go together\n";
    return 2;
  }
  std::error_code ignored;
  state = std::filesystem::absolute(state, ignored).string();
  options.state_dir = state + "/rolloutd";
  if (options.listen.empty()) options.listen = {fmt::format("unix:{}/rolloutd.sock", state)};
  if (options.sandbox_address.empty()) {
    options.sandbox_address = fmt::format("unix:{}/sandboxd.sock", state);
  }
  auto parsed = reprise::storage::ParseDurability(durability);
  if (!parsed.ok()) {
    std::cerr << "rolloutd: --durability: " << reprise::rollout::Message(parsed.status()) << "\n";
    return 2;
  }
  options.durability = *parsed;
  if (print_config) {
    std::cout << app.config_to_str(true);
    return 0;
  }
  for (const std::string& point : fail_points) {
    absl::Status armed = reprise::base::ArmFailPoint(point);
    if (!armed.ok()) {
      std::cerr << "rolloutd: --fail-point: " << reprise::rollout::Message(armed) << "\n";
      return 2;
    }
  }
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  auto daemon = reprise::rollout::Daemon::Start(options);
  if (!daemon.ok()) return Fail(daemon.status());
  for (const std::string& address : (*daemon)->addresses()) {
    LogInfo(fmt::format("listening on {}", address));
  }
  if (!(*daemon)->http_address().empty())
    LogInfo(fmt::format("listening on {}", (*daemon)->http_address()));
  if (job.job_file.empty()) {
    WaitForSignal(signals);
    return 0;
  }
  pthread_sigmask(SIG_UNBLOCK, &signals,
                  nullptr);  // a signal ends a one-job run; the same command goes on
  auto client = reprise::rollout::RolloutClient::Connect((*daemon)->addresses()[0]);
  auto done = reprise::rollout::RunJob(client.get(), job);
  if (!done.ok()) return Fail(done.status());
  const auto& ended = done->job;
  std::cout << fmt::format(
      "job {} {}: trajectories {} failed {} rewarded {} mean_reward {:.4f} calls {} sampled {} "
      "resumed {} decoded {} decoded_again {} prefilled_again {} tokens_per_second {:.1f}\n",
      ended.job_id(), ended.state(), ended.trajectories(), ended.failed(), ended.rewarded(),
      ended.mean_reward(), ended.tool_calls(), ended.sampled_tokens(), ended.resumed_trajectories(),
      ended.decoded_this_run(), ended.decoded_again(), ended.prefilled_again(),
      done->tokens_per_second);
  return ended.state() == "completed" ? 0 : 1;
}
