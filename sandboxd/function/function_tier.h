// The function tier: a pool of workers that were made in advance, each a fresh sandbox for exactly
// one call. A sandbox of this tier is only a name with a spec; nothing lives between its calls.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "sandboxd/substrate.h"

namespace reprise::sandboxd {

struct FunctionTierOptions {
  std::string state_dir;   // of this tier
  std::string helper_dir;  // where reprise-supervisor is
  int pool = 4;            // ready workers
  int max = 64;            // workers in all
  std::string resolver;    // ADDRESS:PORT that the DNS of sandboxes with a network asks
};

// A host that cannot run it gives a tier whose Describe() says why. Errors: the state directory.
absl::StatusOr<std::unique_ptr<Substrate>> MakeFunctionTier(const FunctionTierOptions& options);

}  // namespace reprise::sandboxd
