// What the tests of every tier with an agent share: a sink that a test can wait on, sandboxes that
// go with the test, and calls in them. A fixture of a tier says how the tier is made.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/fd.h"
#include "sandboxd/substrate.h"

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

class TierTest : public ::testing::Test {
 protected:
  void TearDown() override;

  // The daemon dies, and another one starts on its state.
  virtual void Restart() = 0;
  // A time limit that is over soon, and still lets a shell start.
  virtual uint64_t BriefMs() const { return 700; }
  // What a test's sandbox is made of, before the test changes it.
  virtual void Fill(sandbox::SandboxSpec& spec) = 0;

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

  std::shared_ptr<Substrate> tier_;
  std::vector<TestSandbox> boxes_;
  int next_ = 0;
};

}  // namespace reprise::sandboxd
