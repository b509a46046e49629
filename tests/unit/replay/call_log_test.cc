// Goal: a call id runs at most once, ever, and its output and result come back as they were.
// Method: a real store, rival threads, reopening, every request field changed in turn, and a search
// of the files for a secret.
#include "replay/call_log.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <thread>

#include "base/failpoint.h"
#include "base/fd.h"
#include "tests/killed_child.h"

namespace reprise::replay {
namespace {

constexpr size_t kPiece = 10;  // bytes of one append of the child

class CallLogTest : public testing::Test {
 protected:
  void SetUp() override { Reopen(); }

  void Reopen() { Open(dir_.path()); }

  void Open(const std::string& path) {
    log_.reset();
    store_.reset();
    storage::StoreOptions options;
    options.path = path;
    options.families = CallLogFamilies();
    auto store = storage::Store::Open(options);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = std::move(*store);
    auto log = CallLog::Open(store_.get());
    ASSERT_TRUE(log.ok()) << log.status();
    log_ = std::move(*log);
  }

  static sandbox::ExecuteRequest Request(const std::string& call_id) {
    sandbox::ExecuteRequest request;
    request.set_sandbox_id("box");
    request.set_call_id(call_id);
    request.add_argv("echo");
    request.add_argv("hello");
    request.set_stdin("in");
    return request;
  }

  absl::StatusOr<journal::CallIntent> Begin(const sandbox::ExecuteRequest& request) {
    journal::CallIntent intent;
    intent.set_call_id(request.call_id());
    intent.set_sandbox_id(request.sandbox_id());
    *intent.mutable_request() = request;
    intent.set_placement("w1");
    intent.set_boot_id("boot");
    return log_->Begin(std::move(intent));
  }

  std::string Output(const std::string& call_id, sandbox::Stream stream) {
    std::string text;
    EXPECT_TRUE(log_->ReadOutput(call_id,
                                 [&](const journal::CallOutput& chunk) {
                                   if (chunk.stream() == stream) text += chunk.data();
                                   return absl::OkStatus();
                                 })
                    .ok());
    return text;
  }

  base::ScratchDir dir_;
  std::unique_ptr<storage::Store> store_;
  std::unique_ptr<CallLog> log_;
};

TEST_F(CallLogTest, OneOfManyRivalsBegins) {
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> won{0};
    std::atomic<int> lost{0};
    std::vector<std::thread> rivals;
    for (int i = 0; i < 8; ++i) {
      rivals.emplace_back([&, round] {
        auto request = Request("call" + std::to_string(round));
        auto begun = Begin(request);
        if (begun.ok()) {
          ++won;
        } else {
          EXPECT_EQ(begun.status().code(), absl::StatusCode::kAlreadyExists);
          EXPECT_TRUE(log_->Find(request).ok());  // the winner's INTENT is there for the loser
          ++lost;
        }
      });
    }
    for (std::thread& rival : rivals) rival.join();
    EXPECT_EQ(won, 1);
    EXPECT_EQ(lost, 7);
  }
  auto calls = log_->ListCalls("box");
  ASSERT_TRUE(calls.ok());
  ASSERT_EQ(calls->size(), 20u);
  for (size_t i = 0; i < calls->size(); ++i) EXPECT_EQ((*calls)[i].intent.ordinal(), i);
}

TEST_F(CallLogTest, LifeOfACallSurvivesReopening) {
  auto request = Request("t/0/0");
  EXPECT_EQ(log_->Find(request).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(Begin(request).ok());
  ASSERT_TRUE(log_->AppendOutput("t/0/0", sandbox::STREAM_STDOUT, 0, "abc", 1 << 20).ok());
  ASSERT_TRUE(log_->AppendOutput("t/0/0", sandbox::STREAM_STDERR, 0, "err", 1 << 20).ok());
  Reopen();
  auto running = log_->Running();
  ASSERT_TRUE(running.ok());
  ASSERT_EQ(running->size(), 1u);
  EXPECT_EQ((*running)[0].placement(), "w1");
  auto offsets = log_->OutputOffsets("t/0/0");
  ASSERT_TRUE(offsets.ok());
  EXPECT_EQ(offsets->stdout_bytes, 3u);
  EXPECT_EQ(offsets->stderr_bytes, 3u);
  // The owner sends some of it again: no byte twice, no gap taken.
  ASSERT_TRUE(log_->AppendOutput("t/0/0", sandbox::STREAM_STDOUT, 1, "bcdef", 1 << 20).ok());
  EXPECT_FALSE(log_->AppendOutput("t/0/0", sandbox::STREAM_STDOUT, 9, "x", 1 << 20).ok());
  EXPECT_EQ(Output("t/0/0", sandbox::STREAM_STDOUT), "abcdef");
  sandbox::Result result;
  result.set_outcome(sandbox::OUTCOME_EXITED);
  result.set_exit_code(3);
  ASSERT_TRUE(log_->Complete("t/0/0", result).ok());
  EXPECT_EQ(log_->Complete("t/0/0", result).code(), absl::StatusCode::kAlreadyExists);
  Reopen();
  auto found = log_->Find(request);
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_TRUE(found->result.has_value());
  EXPECT_EQ(found->result->result().exit_code(), 3);
  EXPECT_EQ(Output("t/0/0", sandbox::STREAM_STDOUT), "abcdef");
  EXPECT_TRUE(log_->Running()->empty());
  EXPECT_EQ(Begin(request).status().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(CallLogTest, EveryFieldThatDiffersIsNamed) {
  auto request = Request("c");
  request.mutable_limits()->set_pids(4);
  auto* file = request.add_files();
  file->set_path("f");
  file->set_content("x");
  ASSERT_TRUE(Begin(request).ok());
  ASSERT_TRUE(log_->Find(request).ok());
  auto same = request;
  same.mutable_span()->set_trajectory_id("other");
  EXPECT_TRUE(log_->Find(same).ok());  // the span takes no part

  using Change = std::pair<std::string, std::function<void(sandbox::ExecuteRequest*)>>;
  const std::vector<Change> changes = {
      {"sandbox_id", [](auto* r) { r->set_sandbox_id("b2"); }},
      {"argv[1]", [](auto* r) { r->set_argv(1, "bye"); }},
      {"argv.size", [](auto* r) { r->add_argv("more"); }},
      {"env.size", [](auto* r) { r->add_env()->set_name("A"); }},
      {"working_dir", [](auto* r) { r->set_working_dir("/x"); }},
      {"stdin ", [](auto* r) { r->set_stdin("other"); }},
      {"stdin_open", [](auto* r) { r->set_stdin_open(true); }},
      {"limits.timeout_ms", [](auto* r) { r->mutable_limits()->set_timeout_ms(9); }},
      {"limits.memory_bytes", [](auto* r) { r->mutable_limits()->set_memory_bytes(9); }},
      {"limits.pids", [](auto* r) { r->mutable_limits()->set_pids(9); }},
      {"limits.cpu_ms", [](auto* r) { r->mutable_limits()->set_cpu_ms(9); }},
      {"limits.file_bytes", [](auto* r) { r->mutable_limits()->set_file_bytes(9); }},
      {"limits.disk_bytes", [](auto* r) { r->mutable_limits()->set_disk_bytes(9); }},
      {"limits.open_files", [](auto* r) { r->mutable_limits()->set_open_files(9); }},
      {"limits.output_bytes_kept", [](auto* r) { r->mutable_limits()->set_output_bytes_kept(9); }},
      {"limits.output_bytes_max", [](auto* r) { r->mutable_limits()->set_output_bytes_max(9); }},
      {"on_interrupt", [](auto* r) { r->set_on_interrupt(sandbox::INTERRUPT_POLICY_RERUN); }},
      {"files[0].path", [](auto* r) { r->mutable_files(0)->set_path("g"); }},
      {"files[0].mode", [](auto* r) { r->mutable_files(0)->set_mode(0600); }},
      {"files[0].content", [](auto* r) { r->mutable_files(0)->set_content("y"); }},
      {"user", [](auto* r) { r->set_user("root"); }},
      {"pty", [](auto* r) { r->mutable_pty(); }},
  };
  for (const auto& [field, change] : changes) {
    auto other = request;
    change(&other);
    absl::Status status = log_->Find(other).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << field;
    EXPECT_EQ(std::string(status.message()).find("divergence: " + field), 0u)
        << field << ": " << status;
  }
}

TEST_F(CallLogTest, SecretsReachNoFile) {
  auto request = Request("s");
  auto* secret = request.add_env();
  secret->set_name("TOKEN");
  secret->set_value("hunter2-very-secret");
  secret->set_secret(true);
  ASSERT_TRUE(Begin(request).ok());
  ASSERT_TRUE(log_->Find(request).ok());
  auto other = request;
  other.mutable_env(0)->set_value("another-secret");
  absl::Status status = log_->Find(other).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(std::string(status.message()).find("another-secret"), std::string::npos);
  Reopen();  // flushes what the log held
  log_.reset();
  store_.reset();  // an open store deletes files under the reader
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_.path())) {
    if (!entry.is_regular_file()) continue;
    auto content = base::ReadFile(entry.path().string());
    ASSERT_TRUE(content.ok());
    EXPECT_EQ(content->find("hunter2-very-secret"), std::string::npos) << entry.path();
  }
}

TEST_F(CallLogTest, TheCapKeepsTheTailAndTheOffsets) {
  ASSERT_TRUE(Begin(Request("big")).ok());
  const std::string block(50'000, 'x');
  uint64_t offset = 0;
  for (int i = 0; i < 40; ++i, offset += block.size()) {
    ASSERT_TRUE(log_->AppendOutput("big", sandbox::STREAM_STDOUT, offset, block, 200'000).ok());
  }
  ASSERT_TRUE(log_->AppendOutput("big", sandbox::STREAM_STDERR, 0, "last words", 200'000).ok());
  uint64_t kept = 0, first = 0, end = 0;
  ASSERT_TRUE(log_->ReadOutput("big",
                               [&](const journal::CallOutput& chunk) {
                                 if (chunk.stream() == sandbox::STREAM_STDOUT) {
                                   if (kept == 0) first = chunk.offset();
                                   end = chunk.offset() + chunk.data().size();
                                 }
                                 kept += chunk.data().size();
                                 return absl::OkStatus();
                               })
                  .ok());
  EXPECT_LE(kept, 200'000u);
  EXPECT_GE(kept, 100'000u);
  EXPECT_EQ(end, offset);
  EXPECT_GT(first, 0u);
  Reopen();
  EXPECT_EQ(log_->OutputOffsets("big")->stdout_bytes, offset);
  EXPECT_EQ(log_->OutputOffsets("big")->stderr_bytes, 10u);
  EXPECT_EQ(Output("big", sandbox::STREAM_STDERR), "last words");
}

// Appends output and tells of each piece that was taken, until it is killed.
TEST_F(CallLogTest, DISABLED_ChildAppends) {
  if (ChildDir().empty()) GTEST_SKIP() << "runs as a child of OutputThatWasTaken...";
  log_.reset();
  store_.reset();
  Open(ChildDir());
  ASSERT_TRUE(Begin(Request("k")).ok() && base::ArmFailPoint(ChildPoint()).ok());
  for (uint64_t i = 0; i < 100; ++i) {
    const std::string piece(kPiece, 'o');
    ASSERT_TRUE(log_->AppendOutput("k", sandbox::STREAM_STDOUT, i * kPiece, piece, 1 << 20).ok());
    ASSERT_TRUE(Report());
  }
}

// The child is killed around the n-th write.
TEST_F(CallLogTest, OutputThatWasTakenOutlivesTheProcess) {
  for (const char* point : {"commit.before:1", "commit.after:1", "commit.before:3"}) {
    base::ScratchDir dir;
    const ChildEnd end = RunChild("CallLogTest.DISABLED_ChildAppends", dir.path(), point);
    ASSERT_TRUE(WIFSIGNALED(end.status) && WTERMSIG(end.status) == SIGKILL) << end.status;
    log_.reset();
    store_.reset();
    Open(dir.path());
    ASSERT_NE(log_, nullptr);
    EXPECT_GE(log_->OutputOffsets("k")->stdout_bytes, end.reports * kPiece) << point;
    EXPECT_EQ(Output("k", sandbox::STREAM_STDOUT).size(), log_->OutputOffsets("k")->stdout_bytes);
  }
}

TEST_F(CallLogTest, RebindMovesARunningCallAndDropsItsOutput) {
  ASSERT_TRUE(Begin(Request("m")).ok());
  ASSERT_TRUE(log_->AppendOutput("m", sandbox::STREAM_STDOUT, 0, "old", 1 << 20).ok());
  ASSERT_TRUE(log_->Rebind("m", "w2", "boot2").ok());
  auto found = log_->FindById("m");
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->intent.placement(), "w2");
  EXPECT_EQ(log_->OutputOffsets("m")->stdout_bytes, 0u);
  EXPECT_EQ(Output("m", sandbox::STREAM_STDOUT), "");
}

}  // namespace
}  // namespace reprise::replay
