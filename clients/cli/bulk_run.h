// `reprise bulk run`: every line of a file as one call, so many at a time, results in the order of
// the lines. What ran is in the journal: the same command again answers from there and goes on.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/cli/context.h"
#include "clients/cli/sandbox_api.h"

namespace reprise::cli {

struct BulkOptions {
  std::string file, out, tier, name;
  SandboxTarget target;  // neither server nor state: a daemon of our own on OUT.state
  int parallel = 4;
  int patience_s = 300;                 // with nobody listening, before the run ends with an error
  uint64_t output_bytes = 1 << 20;      // of each stream in a result line; the end is kept
  sandbox_wire::SandboxSpec spec;       // limits, image and more that lines start from
  std::vector<std::string> binds, env;  // HOST:INSIDE[:rw]; NAME=VALUE
  std::vector<std::string> bind_roots;  // of a daemon of our own
};

absl::StatusOr<int> RunBulk(const Context& context, BulkOptions options);

}  // namespace reprise::cli
