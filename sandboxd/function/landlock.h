// Landlock on top of the mounts: reading everywhere in the sandbox's root, writing only where it is
// meant.
#pragma once

#include <string>

#include "sandboxd/agent/os.h"

namespace reprise::sandboxd::function {

// The kernel's Landlock ABI; 0 when it has none.
int LandlockAbi();

class Landlock {
 public:
  // Read and execute below "/". Not valid where the kernel has no Landlock.
  static Landlock Make();
  bool valid() const { return ruleset_.valid(); }
  // Everything below `path` (a directory or a file) may be written too. False with errno set.
  bool AllowWrite(const std::string& path);
  // Binds this process and its children for good. Needs no_new_privs.
  bool Restrict() const;

 private:
  bool Allow(const std::string& path, unsigned long long rights);
  int abi_ = 0;
  agent::Fd ruleset_;
};

}  // namespace reprise::sandboxd::function
