// The options about KV states, in memory and on disk, for the commands that start a rollout daemon. Included by
// the files that declare options, and by no other.
#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <string>

#include "engine/engine.h"

namespace reprise::rollout {

inline void AddKvOptions(CLI::App& app, int64_t& kv_bytes, engine::PrefixDiskOptions& options) {
  app.add_option("--kv-bytes", kv_bytes,
                 "bound of the KV states that a model decodes, e.g. 8gb; what has no room waits on "
                 "disk; default: none")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->type_name("BYTES");
  app.add_option("--prefix-cache", options.directory,
                 "directory in which the states of prompts are kept for the next start; default: "
                 "none")
      ->type_name("DIR");
  app.add_option("--prefix-cache-bytes", options.bytes_max,
                 "bound of --prefix-cache for each model, e.g. 16gb")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->type_name("BYTES");
  const std::map<std::string, engine::PrefixWindows> words = {
      {"full", engine::PrefixWindows::kFull},
      {"periodic", engine::PrefixWindows::kPeriodic},
      {"zero", engine::PrefixWindows::kZero}};
  app.add_option_function<std::string>(
         "--prefix-cache-windows",
         [&options, words](const std::string& word) { options.windows = words.at(word); },
         "what it keeps of the newest tokens beside compressed entries: full, periodic or zero "
         "(computed again) [periodic]")
      ->check(CLI::IsMember({"full", "periodic", "zero"}))
      ->type_name("WORD");
}

}  // namespace reprise::rollout
