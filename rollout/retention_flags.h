// The options about ended trajectories for the commands that start a rollout daemon. Included by
// the files that declare options, and by no other.
#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <string>

#include "rollout/retention_options.h"

namespace reprise::rollout {

inline void AddRetentionFlags(CLI::App& app, RetentionOptions& options) {
  const std::map<std::string, Retention> words = {
      {"keep", Retention::kKeep}, {"export", Retention::kExport}, {"drop", Retention::kDrop}};
  app.add_option_function<std::string>(
         "--retention",
         [&options, words](const std::string& word) { options.policy = words.at(word); },
         "what becomes of the files of ended trajectories of jobs that do not say: keep, export or "
         "drop [keep]")
      ->check(CLI::IsMember({"keep", "export", "drop"}))
      ->type_name("WORD");
  app.add_option("--retention-after", options.after_s,
                 "seconds since a trajectory ended after which it is exported or dropped; 0 = no "
                 "matter how old")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
      ->capture_default_str()
      ->type_name("SECONDS");
  app.add_option("--retention-bytes", options.bytes_max,
                 "bound of all files of ended trajectories, e.g. 100gb; the oldest are exported or "
                 "dropped; default: none")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->type_name("BYTES");
  app.add_option("--retention-dir", options.export_dir,
                 "directory for the records of --retention export; default STATE/rolloutd/exported")
      ->type_name("DIR");
  app.add_option("--retention-every", options.every_s,
                 "seconds between two looks at what has ended")
      ->check(CLI::Range(int64_t{1}, int64_t{86400}))
      ->capture_default_str()
      ->type_name("SECONDS");
}

}  // namespace reprise::rollout
