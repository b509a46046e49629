// What the tests of the vm tier share: one tier for the process, so that its template boots once,
// and a disk with a system of its own that a test can see work.
#pragma once

#include <memory>
#include <string>

#include "sandboxd/fullvm/fullvm_tier.h"
#include "tests/integration/tier_support.h"

namespace reprise::sandboxd {

class FullvmTest : public TierTest {
 protected:
  static void SetUpTestSuite();
  void SetUp() override;
  void Restart() override;
  void Fill(sandbox::SandboxSpec& spec) override;
  // Emulated guests take their time.
  uint64_t BriefMs() const override { return 4000; }

  // All that the console of a machine said.
  std::string ConsoleOf(const TestSandbox& box);
  // Waits until the console said `text`; "" when it did not in a minute.
  std::string WaitForConsole(const TestSandbox& box, const std::string& text);

  // Where the tier keeps its files.
  static const std::string& StateDir();
};

// A bootable disk of 1 MiB: its boot sector prints on the screen and the serial console a greeting,
// then "fresh" of the second sector and "Xresh" after it wrote there, then what is typed on the
// keyboard.
std::string EchoDisk();

// Makes a disk at `path` that boots Linux by itself, with busybox and without our programs: as
// cloud-init would, it mounts the seed, copies them from there and runs `reprise-guest serve`.
// Not OK: what this host lacks.
absl::Status MakeLinuxDisk(const std::string& path);

}  // namespace reprise::sandboxd
