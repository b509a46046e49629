// Options that set the fields of a message: limits of a call, and texts.
#pragma once

#include <cmath>
#include <string>
#include <utility>

#include "clients/cli/options.h"
#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::cli {

// An option that hands its text to `set`.
template <typename Set>
CLI::Option* AddText(CLI::App& app, const std::string& name, const std::string& type,
                     const std::string& description, Set set) {
  return app.add_option_function<std::string>(name, std::move(set), description)->type_name(type);
}

// `limits` outlives the parsing. What is not given stays 0, the tier's default.
inline void AddLimitOptions(CLI::App& app, ::reprise::sandbox::v1::Limits& limits) {
  auto seconds = [&app](const std::string& name, const std::string& description, auto set) {
    app.add_option_function<double>(
           name,
           [set](const double& value) { set(static_cast<uint64_t>(std::ceil(value * 1000))); },
           description)
        ->check(CLI::Range(0.001, 604800.0))
        ->type_name("SECONDS");
  };
  auto bytes = [&app](const std::string& name, const std::string& description, auto set) {
    app.add_option_function<uint64_t>(name, set, description)
        ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
        ->type_name("BYTES");
  };
  seconds("--timeout", "wall-clock limit of a call",
          [&limits](uint64_t ms) { limits.set_timeout_ms(ms); });
  seconds("--cpu-time", "CPU time of one process",
          [&limits](uint64_t ms) { limits.set_cpu_ms(ms); });
  bytes("--memory", "memory of a call, e.g. 512mb",
        [&limits](const uint64_t& n) { limits.set_memory_bytes(n); });
  bytes("--disk", "writable space of a call",
        [&limits](const uint64_t& n) { limits.set_disk_bytes(n); });
  bytes("--output-kept", "output of a call that is recorded, the end of it",
        [&limits](const uint64_t& n) { limits.set_output_bytes_kept(n); });
  bytes("--output-max", "output after which a call is killed",
        [&limits](const uint64_t& n) { limits.set_output_bytes_max(n); });
  app.add_option_function<uint32_t>(
         "--pids", [&limits](const uint32_t& n) { limits.set_pids(n); },
         "processes and threads at one time")
      ->type_name("N");
  app.add_flag_function(
      "--best-effort", [&limits](int64_t) { limits.set_best_effort(true); },
      "use processors only while nothing else wants them");
}

}  // namespace reprise::cli
