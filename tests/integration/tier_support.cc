#include "tests/integration/tier_support.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

namespace reprise::sandboxd {
namespace {

constexpr absl::Duration kWaitMax = absl::Seconds(60);

}  // namespace

class Recording::Forwarder final : public CallSink {
 public:
  explicit Forwarder(std::shared_ptr<Recording> to) : to_(std::move(to)) {}
  void OnStarted(std::vector<sandbox::StepTime>) override {}
  void OnOutput(sandbox::Stream stream, uint64_t offset, std::string_view data) override {
    absl::MutexLock lock(&to_->mutex_);
    const int index = stream == sandbox::STREAM_STDERR ? 1 : 0;
    if (offset != to_->next_[index] || to_->ends > 0) to_->gap = true;
    to_->next_[index] = offset + data.size();
    (index == 0 ? to_->stdout_text : to_->stderr_text).append(data);
    if (to_->call_ != nullptr) to_->call_->Acknowledge(stream, to_->next_[index]);
  }
  void OnEnd(sandbox::Result result) override {
    absl::MutexLock lock(&to_->mutex_);
    ++to_->ends;
    to_->result = std::move(result);
  }

 private:
  const std::shared_ptr<Recording> to_;
};

std::unique_ptr<CallSink> Recording::Sink() {
  return std::make_unique<Forwarder>(shared_from_this());
}

void Recording::AcknowledgeTo(RunningCall* call) {
  absl::MutexLock lock(&mutex_);
  call_ = call;
  if (call_ == nullptr) return;
  call_->Acknowledge(sandbox::STREAM_STDOUT, next_[0]);
  call_->Acknowledge(sandbox::STREAM_STDERR, next_[1]);
}

void Recording::StartAt(OutputPosition from) {
  absl::MutexLock lock(&mutex_);
  next_[0] = from.stdout_offset;
  next_[1] = from.stderr_offset;
}

bool Recording::WaitFor(const std::function<bool(const Recording&)>& done) {
  absl::MutexLock lock(&mutex_);
  auto holds = [&] { return done(*this); };
  return mutex_.AwaitWithTimeout(absl::Condition(&holds), kWaitMax);
}

bool Recording::WaitForText(const std::string& text) {
  return WaitFor([&](const Recording& r) {
           return r.stdout_text.find(text) != std::string::npos || r.ends > 0;
         }) &&
         out().find(text) != std::string::npos;
}

sandbox::Result Recording::WaitForEnd() {
  EXPECT_TRUE(WaitFor([](const Recording& r) { return r.ends > 0; })) << "the call did not end";
  absl::MutexLock lock(&mutex_);
  EXPECT_FALSE(gap) << "output came with a gap, twice, or after the end";
  return result.value_or(sandbox::Result());
}

std::string Recording::out() {
  absl::MutexLock lock(&mutex_);
  return stdout_text;
}
std::string Recording::err() {
  absl::MutexLock lock(&mutex_);
  return stderr_text;
}

void MakeBusyboxRoot(const std::string& directory) {
  namespace fs = std::filesystem;
  for (const char* const part : {"bin", "etc", "tmp", "root", "proc", "sys", "dev"}) {
    fs::create_directories(directory + "/" + part);
  }
  fs::permissions(directory + "/tmp", fs::perms::all | fs::perms::sticky_bit);
  fs::copy_file("/bin/busybox", directory + "/bin/busybox");
  FILE* applets = popen("/bin/busybox --list", "r");
  char name[128];
  while (applets != nullptr && std::fgets(name, sizeof(name), applets) != nullptr) {
    std::string applet(name);
    while (!applet.empty() && applet.back() == '\n') applet.pop_back();
    if (applet != "busybox") fs::create_symlink("busybox", directory + "/bin/" + applet);
  }
  if (applets != nullptr) pclose(applets);
  ASSERT_TRUE(
      base::WriteFileAtomic(directory + "/etc/passwd",
                            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n")
          .ok());
  ASSERT_TRUE(base::WriteFileAtomic(directory + "/etc/group", "root:x:0:\nuser:x:1000:\n").ok());
  fs::permissions(directory + "/etc/passwd", static_cast<fs::perms>(0644));
  fs::permissions(directory + "/etc/group", static_cast<fs::perms>(0644));
}

void TierTest::TearDown() {
  if (tier_ == nullptr) return;
  for (const TestSandbox& box : boxes_) EXPECT_TRUE(tier_->StopSandbox(box.ref()).ok());
}

TestSandbox TierTest::Create(const std::function<void(sandbox::SandboxSpec&)>& change) {
  TestSandbox box;
  box.id = fmt::format("test/box_{}", next_++);
  Fill(box.spec);
  if (change) change(box.spec);
  absl::StatusOr<std::string> placement = tier_->CreateSandbox(box.id, box.spec, nullptr);
  EXPECT_TRUE(placement.ok()) << placement.status();
  box.placement = placement.value_or("");
  if (placement.ok()) boxes_.push_back(box);
  return box;
}

sandbox::ExecuteRequest TierTest::Shell(const TestSandbox& box, const std::string& script) {
  sandbox::ExecuteRequest request;
  request.set_sandbox_id(box.id);
  request.set_call_id(fmt::format("call/{}", next_++));
  for (const std::string& argument : {std::string("sh"), std::string("-c"), script})
    request.add_argv(argument);
  request.set_working_dir("/work");
  request.mutable_limits()->set_timeout_ms(60'000);
  return request;
}

TierTest::Running TierTest::Start(const TestSandbox& box, const sandbox::ExecuteRequest& request) {
  Running running;
  absl::StatusOr<std::string> placement = tier_->Reserve(box.ref());
  EXPECT_TRUE(placement.ok()) << placement.status();
  absl::StatusOr<std::unique_ptr<RunningCall>> call =
      tier_->Start(box.ref(), placement.value_or(""), request, running.recording->Sink());
  EXPECT_TRUE(call.ok()) << call.status();
  if (call.ok()) running.call = *std::move(call);
  return running;
}

TierTest::Done TierTest::Run(const TestSandbox& box, const sandbox::ExecuteRequest& request) {
  Running running = Start(box, request);
  if (running.call == nullptr) return {};
  running.recording->AcknowledgeTo(running.call.get());
  Done done;
  done.result = running.recording->WaitForEnd();
  running.recording->AcknowledgeTo(nullptr);
  done.out = running.recording->out();
  done.err = running.recording->err();
  running.call->Release();
  return done;
}

}  // namespace reprise::sandboxd
