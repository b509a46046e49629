// What the microVM tests share: one tier for the process, so that its template boots once.
#pragma once

#include <memory>
#include <string>

#include "sandboxd/microvm/microvm_tier.h"
#include "tests/integration/tier_support.h"

namespace reprise::sandboxd {

class MicrovmTest : public TierTest {
 protected:
  static void SetUpTestSuite();
  void SetUp() override;
  void Restart() override;
  void Fill(sandbox::SandboxSpec& spec) override;
  // Emulated guests take their time.
  uint64_t BriefMs() const override { return 4000; }

  // The next daemon keeps machines ready.
  void RestartWithPool(microvm::ReadyPool::Limits limits);

  // Where the tier keeps its files.
  static const std::string& StateDir();
};

}  // namespace reprise::sandboxd
