// What the container tests share: one containerd for the process, an image made of busybox, and a
// sink that a test can wait on.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/fd.h"
#include "sandboxd/container/container_tier.h"
#include "sandboxd/substrate.h"
#include "tests/integration/containerd_process.h"

namespace reprise::sandboxd {

// What a call said, shared by the test and the sink that the tier owns.
class Recording : public std::enable_shared_from_this<Recording> {
 public:
  // Waits for `done` to hold; false after 60 s.
  bool WaitFor(const std::function<bool(const Recording&)>& done);
  bool WaitForText(const std::string& text);
  // The result, after its end; fails the test when it does not come.
  sandbox::Result WaitForEnd();
  std::string out();
  std::string err();

  // With a call to acknowledge to, everything is acknowledged as it comes.
  void AcknowledgeTo(RunningCall* call);
  // Output that was taken before is not repeated.
  void StartAt(OutputPosition from);
  std::unique_ptr<CallSink> Sink();

  // Read by `done` under the lock.
  std::string stdout_text, stderr_text;
  bool gap = false;  // an offset was not the next one
  int ends = 0;
  std::optional<sandbox::Result> result;

 private:
  class Forwarder;
  absl::Mutex mutex_;
  RunningCall* call_ = nullptr;
  uint64_t next_[2] = {0, 0};
};

// A directory with busybox and its applets.
void MakeBusyboxRoot(const std::string& directory);

// A sandbox that goes with the test.
struct TestSandbox {
  std::string id;
  sandbox::SandboxSpec spec;
  std::string placement;
  SandboxRef ref() const { return {id, &spec, placement}; }
};

class ContainerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite();
  void SetUp() override;
  void TearDown() override;

  std::unique_ptr<Substrate> MakeTier();
  TestSandbox Create(const std::function<void(sandbox::SandboxSpec&)>& change = {});
  // A shell command with the tier's usual limits.
  sandbox::ExecuteRequest Shell(const TestSandbox& box, const std::string& script);
  struct Running {
    std::shared_ptr<Recording> recording = std::make_shared<Recording>();
    std::unique_ptr<RunningCall> call;
  };
  Running Start(const TestSandbox& box, const sandbox::ExecuteRequest& request);
  // Runs a script to its end.
  struct Done {
    sandbox::Result result;
    std::string out, err;
  };
  Done Run(const TestSandbox& box, const sandbox::ExecuteRequest& request);
  Done Run(const TestSandbox& box, const std::string& script) {
    return Run(box, Shell(box, script));
  }

  static const std::string& Address();
  static const std::string& BusyboxRoot();
  std::unique_ptr<Substrate> tier_;
  base::ScratchDir scratch_{"reprise-container-test"};
  std::vector<TestSandbox> boxes_;
  int next_ = 0;
};

}  // namespace reprise::sandboxd
