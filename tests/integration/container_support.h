// What the container tests share: one containerd for the process, and an image made of busybox.
#pragma once

#include <memory>
#include <string>

#include "sandboxd/container/container_tier.h"
#include "tests/integration/containerd_process.h"
#include "tests/integration/tier_support.h"

namespace reprise::sandboxd {

class ContainerTest : public TierTest {
 protected:
  static void SetUpTestSuite();
  void SetUp() override;
  void Restart() override;
  void Fill(sandbox::SandboxSpec& spec) override;

  std::unique_ptr<Substrate> MakeTier();
  static const std::string& Address();
  static const std::string& BusyboxRoot();
  base::ScratchDir scratch_{"reprise-container-test"};
};

}  // namespace reprise::sandboxd
