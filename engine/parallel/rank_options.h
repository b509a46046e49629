// The options about ranks, for the commands that load a model. Included by the files that declare
// options, and by no other.
#pragma once

#include <CLI/CLI.hpp>

#include "engine/parallel/parallel_engine.h"

namespace reprise::engine {

inline void AddRankOptions(CLI::App& app, ParallelOptions& options) {
  CLI::Option* ranks =
      app.add_option("--ranks", options.ranks,
                     "processes of this host that run a model together; --threads is of each")
          ->check(CLI::Range(1, kRanksMax))
          ->type_name("N");
  CLI::Option* others =
      app.add_option("--rank", options.others,
                     "address of a reprise-rank that runs a part of the model; repeatable")
          ->excludes(ranks)
          ->type_name("HOST:PORT");
  app.add_option("--rank-secret-file", options.secret_file, "what they were started with")
      ->needs(others)
      ->type_name("FILE");
}

}  // namespace reprise::engine
