// The cases that every tier with an agent must pass, over any fixture that is a TierTest:
// INSTANTIATE_TYPED_TEST_SUITE_P(Container, TierCases, ContainerTest).
#pragma once

#include <arpa/inet.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "sandboxd/image/blob.h"
#include "tests/integration/tier_support.h"

namespace reprise::sandboxd {

template <typename Fixture>
class TierCases : public Fixture {
 public:
  using Running = typename Fixture::Running;
  using Done = typename Fixture::Done;
};
TYPED_TEST_SUITE_P(TierCases);

TYPED_TEST_P(TierCases, RunsACommandAndTellsItsExitCode) {
  const TestSandbox box = this->Create();
  const typename TestFixture::Done done = this->Run(box, "echo out; echo err >&2; pwd; exit 7");
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_EXITED) << done.result.ShortDebugString();
  EXPECT_EQ(done.result.exit_code(), 7);
  EXPECT_EQ(done.out, "out\n/work\n");
  EXPECT_EQ(done.err, "err\n");
  EXPECT_GT(done.result.usage().wall_us(), 0);
  EXPECT_GT(done.result.usage().memory_peak_bytes(), 0u);
}

TYPED_TEST_P(TierCases, StreamsOutputWhileTheCommandWaitsForInput) {
  const TestSandbox box = this->Create();
  sandbox::ExecuteRequest request =
      this->Shell(box, "echo ready; while read line; do echo \"got $line\"; done; echo end");
  request.set_stdin("first\n");
  request.set_stdin_open(true);
  typename TestFixture::Running running = this->Start(box, request);
  ASSERT_NE(running.call, nullptr);
  running.recording->AcknowledgeTo(running.call.get());
  EXPECT_TRUE(running.recording->WaitForText("ready\ngot first\n"));
  ASSERT_TRUE(running.call->WriteStdin("second\n", false).ok());
  EXPECT_TRUE(running.recording->WaitForText("got second\n"));
  ASSERT_TRUE(running.call->WriteStdin("third\n", true).ok());
  const sandbox::Result result = running.recording->WaitForEnd();
  EXPECT_EQ(result.outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_EQ(running.recording->out(), "ready\ngot first\ngot second\ngot third\nend\n");
}

TYPED_TEST_P(TierCases, PassesLargeInputAndOutputWhole) {
  const TestSandbox box = this->Create();
  sandbox::ExecuteRequest request = this->Shell(box, "cat");
  std::string data(8 << 20, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 2654435761u >> 13);
  request.set_stdin(data);
  const typename TestFixture::Done done = this->Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_EXITED) << done.result.ShortDebugString();
  EXPECT_TRUE(done.out == data);
  EXPECT_EQ(done.result.stdout_bytes(), data.size());
}

TYPED_TEST_P(TierCases, GivesEnvironmentUserAndWorkingDirectory) {
  const TestSandbox box = this->Create();
  sandbox::ExecuteRequest request = this->Shell(box, "echo $GREETING; id -u; pwd; echo $HOME");
  request.set_user("user");
  request.set_working_dir("/tmp");
  sandbox::EnvVar* variable = request.add_env();
  variable->set_name("GREETING");
  variable->set_value("hello there");
  EXPECT_EQ(this->Run(box, request).out, "hello there\n1000\n/tmp\n/tmp\n");
}

TYPED_TEST_P(TierCases, ABestEffortCallHasTheIdlePolicy) {
  const TestSandbox box = this->Create();
  const std::string policy = "cut -d ' ' -f 41 /proc/self/stat";  // SCHED_OTHER is 0, SCHED_IDLE 5
  EXPECT_EQ(this->Run(box, policy).out, "0\n");
  sandbox::ExecuteRequest request = this->Shell(box, policy);
  request.mutable_limits()->set_best_effort(true);
  EXPECT_EQ(this->Run(box, request).out, "5\n");
}

TYPED_TEST_P(TierCases, TellsWhyACommandCannotStart) {
  const TestSandbox box = this->Create();
  sandbox::ExecuteRequest request = this->Shell(box, "");
  request.clear_argv();
  request.add_argv("no-such-program");
  typename TestFixture::Done done = this->Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_SETUP_FAILED);
  EXPECT_THAT(done.result.message(), ::testing::HasSubstr("no-such-program"));
  request = this->Shell(box, "true");
  request.set_working_dir("/nowhere");
  done = this->Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_SETUP_FAILED);
  EXPECT_THAT(done.result.message(), ::testing::HasSubstr("working directory"));
}

TYPED_TEST_P(TierCases, ToldSignalsFromLimits) {
  const TestSandbox box = this->Create();
  typename TestFixture::Done done = this->Run(box, "kill -SEGV $$");
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_SIGNALED) << done.result.ShortDebugString();
  EXPECT_EQ(done.result.signal(), SIGSEGV);
  done = this->Run(box, "kill -KILL $$");
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_SIGNALED) << done.result.ShortDebugString();
  EXPECT_EQ(done.result.signal(), SIGKILL);
  sandbox::ExecuteRequest request = this->Shell(box, "while :; do :; done");
  request.mutable_limits()->set_cpu_ms(1000);
  done = this->Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_TIMED_OUT) << done.result.ShortDebugString();
  EXPECT_THAT(done.result.message(), ::testing::HasSubstr("CPU limit of 1 s"));
}

TYPED_TEST_P(TierCases, KillsWhatIgnoresSignalsAtItsTimeLimit) {
  const TestSandbox box = this->Create();
  sandbox::ExecuteRequest request =
      this->Shell(box,
                  "trap '' TERM INT HUP; (trap '' TERM; setsid sleep 1000) "
                  "& echo up; while :; do sleep 1000; done");
  request.mutable_limits()->set_timeout_ms(this->BriefMs());
  const typename TestFixture::Done done = this->Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_TIMED_OUT) << done.result.ShortDebugString();
  EXPECT_EQ(done.out, "up\n");
  EXPECT_GE(done.result.usage().wall_us(), static_cast<int64_t>(this->BriefMs()) * 1000);
  EXPECT_EQ(this->Run(box, "pidof sleep").result.exit_code(), 1)
      << "something of the call is still alive";
}

TYPED_TEST_P(TierCases, SignalsAndCancels) {
  const TestSandbox box = this->Create();
  typename TestFixture::Running running = this->Start(
      box,
      this->Shell(box, "trap 'echo caught; exit 3' USR1; echo up; while :; do sleep 0.1; done"));
  ASSERT_NE(running.call, nullptr);
  EXPECT_TRUE(running.recording->WaitForText("up\n"));
  EXPECT_TRUE(running.call->Signal(SIGUSR1).ok());
  EXPECT_EQ(running.recording->WaitForEnd().exit_code(), 3);
  EXPECT_FALSE(running.call->Signal(SIGUSR1).ok()) << "it has ended";

  running = this->Start(box, this->Shell(box, "echo up; sleep 1000"));
  ASSERT_NE(running.call, nullptr);
  EXPECT_TRUE(running.recording->WaitForText("up\n"));
  EXPECT_TRUE(running.call->Cancel().ok());
  EXPECT_EQ(running.recording->WaitForEnd().outcome(), sandbox::OUTCOME_CANCELLED);
}

TYPED_TEST_P(TierCases, EndsAMemoryEaterWithItsOwnOutcome) {
  const TestSandbox box =
      this->Create([](auto& spec) { spec.mutable_limits()->set_memory_bytes(64 << 20); });
  const std::string eater = "exec awk 'BEGIN { s = \"x\"; while (1) s = s s }'";
  typename TestFixture::Done done = this->Run(box, eater);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_MEMORY_EXCEEDED)
      << done.result.ShortDebugString();
  // As the child of a shell, and by a second call, whose sandbox still works.
  done = this->Run(box, "awk 'BEGIN { s = \"x\"; while (1) s = s s }'; exit $?");
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_MEMORY_EXCEEDED)
      << done.result.ShortDebugString();
  done = this->Run(box, "kill -KILL $$");
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_SIGNALED) << "no memory was eaten by this one";
  EXPECT_EQ(this->Run(box, "echo fine").out, "fine\n");
}

TYPED_TEST_P(TierCases, EndsAFloodOfOutput) {
  const TestSandbox box = this->Create();
  sandbox::ExecuteRequest request = this->Shell(box, "yes");
  request.mutable_limits()->set_output_bytes_max(3 << 20);
  const typename TestFixture::Done done = this->Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_OUTPUT_TRUNCATED)
      << done.result.ShortDebugString();
  EXPECT_EQ(done.out.size(), 3u << 20);
}

TYPED_TEST_P(TierCases, HoldsOutputThatIsNotAcknowledgedAndLosesNone) {
  const TestSandbox box = this->Create();
  constexpr size_t kBytes = 4 << 20;
  typename TestFixture::Running running =
      this->Start(box, this->Shell(box, fmt::format("yes | head -c {}", kBytes)));
  ASSERT_NE(running.call, nullptr);
  EXPECT_TRUE(running.recording->WaitFor(
      [](const Recording& r) { return r.stdout_text.size() >= 1u << 20; }));
  EXPECT_LT(running.recording->out().size(), kBytes / 2)
      << "more than the limit came without an acknowledgement";
  running.recording->AcknowledgeTo(running.call.get());
  EXPECT_EQ(running.recording->WaitForEnd().outcome(), sandbox::OUTCOME_EXITED);
  running.recording->AcknowledgeTo(nullptr);
  EXPECT_EQ(running.recording->out().size(), kBytes);
}

TYPED_TEST_P(TierCases, BoundsAForkBomb) {
  const TestSandbox box = this->Create([](auto& spec) { spec.mutable_limits()->set_pids(64); });
  // The first shell only waits: one that had to fork would end the call itself.
  sandbox::ExecuteRequest request =
      this->Shell(box, "bomb() { bomb | bomb & }; (bomb); read never");
  request.set_stdin_open(true);
  request.mutable_limits()->set_timeout_ms(2 * this->BriefMs());
  const typename TestFixture::Done done = this->Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_TIMED_OUT) << done.result.ShortDebugString();
  EXPECT_EQ(this->Run(box, "echo fine").out, "fine\n");
}

TYPED_TEST_P(TierCases, HasNoNetwork) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const TestSandbox box = this->Create();
  const typename TestFixture::Done done =
      this->Run(box, fmt::format("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '; "
                                 "nc -w 2 127.0.0.1 {} </dev/null && echo reached",
                                 ntohs(address.sin_port)));
  EXPECT_EQ(done.out, "lo\n");
  close(listener);
}

TYPED_TEST_P(TierCases, KeepsStateBetweenCallsAndSandboxesApart) {
  const TestSandbox a = this->Create(), b = this->Create();
  EXPECT_EQ(this->Run(a, "echo kept > /work/file; echo kept > /etc/file").result.exit_code(), 0);
  EXPECT_EQ(this->Run(a, "cat /work/file /etc/file").out, "kept\nkept\n");
  EXPECT_NE(this->Run(b, "cat /work/file").result.exit_code(), 0);
}

TYPED_TEST_P(TierCases, LaysInputFilesBesideTheCommand) {
  const TestSandbox box = this->Create();
  sandbox::ExecuteRequest request = this->Shell(box, "cat data/in.txt; ./tool");
  sandbox::InputFile* file = request.add_files();
  file->set_path("data/in.txt");
  file->set_content("input\n");
  file = request.add_files();
  file->set_path("tool");
  file->set_content("#!/bin/sh\necho tool\n");
  file->set_mode(0755);
  EXPECT_EQ(this->Run(box, request).out, "input\ntool\n");
}

TYPED_TEST_P(TierCases, ServesFiles) {
  const TestSandbox box = this->Create();
  const SandboxRef ref = box.ref();
  std::string content(300'000, 'x');
  size_t at = 0;
  auto next = [&]() -> absl::StatusOr<std::string> {
    const std::string piece = content.substr(at, 100'000);
    at += piece.size();
    return piece;
  };
  auto read = [&](const std::string& path) -> absl::StatusOr<std::string> {
    std::string data;
    absl::Status status = this->tier_->ReadFile(ref, path, [&](std::string_view chunk) {
      data += chunk;
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    return data;
  };
  ASSERT_TRUE(this->tier_->MakeDir(ref, "/work/a/b").ok());
  absl::Status status = this->tier_->WriteFile(ref, "/work/a/b/file", 0600, next);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(read("/work/a/b/file").value_or(""), content);
  EXPECT_EQ(read("a/b/file").value_or(""), content) << "relative to the working directory";
  EXPECT_TRUE(absl::IsNotFound(read("/work/none").status())) << read("/work/none").status();
  EXPECT_FALSE(read("/work").ok());
  ASSERT_TRUE(this->tier_->Move(ref, "/work/a/b/file", "/work/moved").ok());
  this->Run(box, "ln -s /etc/passwd /work/link");
  absl::StatusOr<std::vector<sandbox::FileInfo>> entries = this->tier_->ListDir(ref, "/work");
  ASSERT_TRUE(entries.ok()) << entries.status();
  std::vector<std::string> names;
  for (const sandbox::FileInfo& entry : *entries)
    names.push_back(entry.name() + ">" + entry.link_target());
  EXPECT_THAT(names, ::testing::ElementsAre("a>", "link>/etc/passwd", "moved>"));
  EXPECT_EQ((*entries)[2].size(), content.size());
  EXPECT_EQ((*entries)[2].mode() & 07777, 0600u);
  ASSERT_TRUE(this->tier_->Remove(ref, "/work/link").ok());
  ASSERT_TRUE(this->tier_->Remove(ref, "/work/a").ok());
  EXPECT_NE(read("/etc/passwd").value_or(""), "") << "a link was followed when it was removed";
  EXPECT_TRUE(absl::IsNotFound(this->tier_->ListDir(ref, "/work/a").status()));
  // An error while data is on its way is told, and a source that fails leaves the tier usable.
  at = 0;
  EXPECT_FALSE(this->tier_->WriteFile(ref, "/proc/version", 0, next).ok());
  EXPECT_TRUE(absl::IsAborted(this->tier_->WriteFile(
      ref, "/work/broken", 0,
      []() -> absl::StatusOr<std::string> { return absl::AbortedError("gone"); })));
  EXPECT_EQ(this->Run(box, "echo fine").out, "fine\n");
}

TYPED_TEST_P(TierCases, WatchesADirectoryAndWhatIsBelowIt) {
  const TestSandbox box = this->Create();
  this->Run(box, "mkdir -p /work/d/old; touch /work/d/old/file");
  absl::StatusOr<std::unique_ptr<FileWatch>> flat =
      this->tier_->Watch(box.ref(), "/work/d", /*recursive=*/false);
  absl::StatusOr<std::unique_ptr<FileWatch>> deep =
      this->tier_->Watch(box.ref(), "/work/d", /*recursive=*/true);
  ASSERT_TRUE(flat.ok() && deep.ok()) << flat.status() << deep.status();
  EXPECT_TRUE(absl::IsNotFound(this->tier_->Watch(box.ref(), "/work/none", false).status()));
  EXPECT_FALSE(this->tier_->Watch(box.ref(), "/etc/passwd", false).ok());
  // Up to the given line, or to the error that ends a watch; the same event again is left out.
  auto events = [](FileWatch& watch, std::vector<std::string> seen, const std::string& until = "") {
    while (seen.empty() || seen.back() != until) {
      absl::StatusOr<std::optional<sandbox::WatchEvent>> event = watch.TryNext();
      if (!event.ok()) {
        EXPECT_TRUE(absl::IsNotFound(event.status())) << event.status();
        return seen;
      }
      pollfd ready{watch.fd(), POLLIN, 0};
      if (!event->has_value() && poll(&ready, 1, 60'000) != 1) return seen;
      if (!event->has_value()) continue;
      const std::string name = sandbox::WatchEventKind_Name((*event)->kind());
      std::string line = name.substr(name.rfind('_') + 1) + " " + (*event)->path();
      if (seen.empty() || seen.back() != line) seen.push_back(std::move(line));
    }
    return seen;
  };
  // A file that is gone before its directory could be looked into is told by nobody.
  std::vector<std::string> below;
  for (const auto& [script, last] : std::vector<std::pair<std::string, std::string>>{
           {"echo a > new; chmod 600 new; mv new moved; rm moved; echo b >> old/file; mkdir made",
            "CREATED made"},
           {"mv made old/made", "CREATED old/made"},
           {": > old/made/inside", "CREATED old/made/inside"},
           {"rm old/file; rm -r /work/d", "none"}}) {
    this->Run(box, "cd /work/d; " + script);
    below = events(**deep, std::move(below), last);
  }
  EXPECT_THAT(events(**flat, {}),
              ::testing::ElementsAre("CREATED new", "WRITTEN new", "CHMOD new", "RENAMED new",
                                     "CREATED moved", "REMOVED moved", "CREATED made",
                                     "RENAMED made", "REMOVED old", "REMOVED "));
  EXPECT_THAT(below,
              ::testing::ElementsAre(
                  "CREATED new", "WRITTEN new", "CHMOD new", "RENAMED new", "CREATED moved",
                  "REMOVED moved", "WRITTEN old/file", "CREATED made", "RENAMED made",
                  "CREATED old/made", "CREATED old/made/inside", "REMOVED old/file",
                  "REMOVED old/made/inside", "REMOVED old/made", "REMOVED old", "REMOVED "));
}

TYPED_TEST_P(TierCases, RunsOnATerminal) {
  const TestSandbox box = this->Create();
  sandbox::ExecuteRequest request = this->Shell(
      box,
      "tty; echo $TERM; stty size; echo oops >&2; trap 'stty size; exit 4' WINCH; echo u\"p\"; "
      "while :; do sleep 0.1; done");
  request.set_stdin_open(true);
  request.mutable_pty()->set_rows(30);
  request.mutable_pty()->set_columns(100);
  request.mutable_pty()->set_term("vt100");
  typename TestFixture::Running running = this->Start(box, request);
  ASSERT_NE(running.call, nullptr);
  running.recording->AcknowledgeTo(running.call.get());
  ASSERT_TRUE(running.recording->WaitForText("up\r\n")) << running.recording->out();
  ASSERT_TRUE(running.call->Resize(41, 121).ok());
  const sandbox::Result result = running.recording->WaitForEnd();
  EXPECT_EQ(result.exit_code(), 4) << result.ShortDebugString();
  EXPECT_THAT(
      running.recording->out(),
      ::testing::MatchesRegex("/dev/pts/[0-9]+\r\nvt100\r\n30 100\r\noops\r\nup\r\n41 121\r\n"));
  EXPECT_EQ(running.recording->err(), "") << "a terminal has one stream";
  EXPECT_FALSE(running.call->Resize(24, 80).ok()) << "it has ended";
  running.recording->AcknowledgeTo(nullptr);
  running.call->Release();
  EXPECT_NE(this->Run(box, "tty").result.exit_code(), 0) << "pipes are no terminal";
}

TYPED_TEST_P(TierCases, InterruptsTheForegroundOfATerminalAndHangsItUp) {
  const TestSandbox box = this->Create();
  sandbox::ExecuteRequest request = this->Shell(box, "");
  request.clear_argv();
  request.add_argv("sh");
  request.set_stdin_open(true);
  request.mutable_pty();
  typename TestFixture::Running running = this->Start(box, request);
  ASSERT_NE(running.call, nullptr);
  running.recording->AcknowledgeTo(running.call.get());
  auto type = [&](std::string_view keys) {
    EXPECT_TRUE(running.call->WriteStdin(keys, false).ok());
  };
  type("sh -c 'echo u\"p\"; exec sleep 1000'\n");
  ASSERT_TRUE(running.recording->WaitForText("up\r\n")) << running.recording->out();
  type("\x03");
  type("echo code $?\n");
  EXPECT_TRUE(running.recording->WaitForText("code 130\r\n")) << running.recording->out();
  // What goes on in the background learns that its terminal is gone.
  type("(trap '' HUP; while echo tick; do sleep 0.1; done; touch /work/hung) & echo go\"es\"\n");
  EXPECT_TRUE(running.recording->WaitForText("goes\r\n")) << running.recording->out();
  ASSERT_TRUE(running.call->WriteStdin("exit 9\n", true).ok());
  EXPECT_EQ(running.recording->WaitForEnd().exit_code(), 9) << running.recording->out();
  running.recording->AcknowledgeTo(nullptr);
  running.call->Release();
  EXPECT_EQ(this->Run(box, "until [ -e /work/hung ]; do sleep 0.1; done").result.exit_code(), 0);

  // Input that was given at once ends by itself, also in the middle of a line.
  request = this->Shell(box, "cat; echo \"and $?\"");
  request.set_stdin("one\ntwo");
  request.mutable_pty();
  const typename TestFixture::Done done = this->Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_EXITED) << done.result.ShortDebugString();
  EXPECT_THAT(done.out, ::testing::EndsWith("twoand 0\r\n"));
  // All that was written before the end is there, also what a terminal does not hold at one time.
  request = this->Shell(box, "seq 1 2000");
  request.mutable_pty();
  EXPECT_THAT(this->Run(box, request).out, ::testing::EndsWith("\r\n2000\r\n"));
}

TYPED_TEST_P(TierCases, CallsOutliveTheTier) {
  const TestSandbox box = this->Create();
  sandbox::ExecuteRequest request =
      this->Shell(box,
                  "echo run >> /work/runs; echo before; read line; echo "
                  "\"after $line\"; cat /work/runs; exit 5");
  request.set_stdin_open(true);
  typename TestFixture::Running first = this->Start(box, request);
  ASSERT_NE(first.call, nullptr);
  EXPECT_TRUE(first.recording->WaitForText("before\n"));
  const std::string quiet_id = "call/that-ends-meanwhile";
  sandbox::ExecuteRequest quiet = this->Shell(box, "seq 1 20000; echo done >&2");
  quiet.set_call_id(quiet_id);
  typename TestFixture::Running second = this->Start(box, quiet);
  ASSERT_NE(second.call, nullptr);
  sandbox::ExecuteRequest forgotten = this->Shell(box, "echo up; sleep 1000");
  typename TestFixture::Running third = this->Start(box, forgotten);
  EXPECT_TRUE(third.recording->WaitForText("up\n"));
  sandbox::ExecuteRequest on_terminal = this->Shell(box, "echo before; read line; stty size");
  on_terminal.set_stdin_open(true);
  on_terminal.mutable_pty();
  typename TestFixture::Running fourth = this->Start(box, on_terminal);
  EXPECT_TRUE(fourth.recording->WaitForText("before\r\n"));
  // The daemon dies: it took the first word, and nothing of it was acknowledged.
  first.call.reset();
  second.call.reset();
  third.call.reset();
  fourth.call.reset();
  EXPECT_EQ(first.recording->ends, 0);

  this->Restart();
  ASSERT_TRUE(this->tier_->RecoverSandbox(box.ref()).ok());
  auto attach = [&](const std::string& id, OutputPosition from,
                    typename TestFixture::Running* running) {
    running->recording->StartAt(from);
    std::unique_ptr<CallSink> sink = running->recording->Sink();
    Attachment attachment = this->tier_->Reattach(box.ref(), box.placement, id, from, sink);
    running->call = std::move(attachment.call);
    return attachment.state;
  };
  typename TestFixture::Running again, ended, terminal, unknown;
  ASSERT_EQ(attach(request.call_id(), {7, 0}, &again), AttachState::kAttached);
  ASSERT_EQ(attach(quiet_id, {0, 0}, &ended), AttachState::kAttached);
  ASSERT_EQ(attach(on_terminal.call_id(), {8, 0}, &terminal), AttachState::kAttached);
  EXPECT_EQ(attach("call/never-started", {0, 0}, &unknown), AttachState::kNeverStarted);
  this->tier_->RecoveryDone();
  // Nobody asked for the third call: it is gone, and its processes with it.
  EXPECT_EQ(attach(forgotten.call_id(), {0, 0}, &unknown), AttachState::kNeverStarted);

  again.recording->AcknowledgeTo(again.call.get());
  ended.recording->AcknowledgeTo(ended.call.get());
  EXPECT_EQ(ended.recording->WaitForEnd().outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_EQ(Sha256Digest(ended.recording->out()), Sha256Digest(this->Run(box, "seq 1 20000").out));
  ASSERT_TRUE(again.call->WriteStdin("word\n", true).ok());
  const sandbox::Result result = again.recording->WaitForEnd();
  EXPECT_EQ(result.outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_EQ(result.exit_code(), 5);
  EXPECT_EQ(again.recording->out(), "after word\nrun\n") << "it ran once, and goes on where it was";
  terminal.recording->AcknowledgeTo(terminal.call.get());
  ASSERT_TRUE(terminal.call->Resize(33, 77).ok());
  ASSERT_TRUE(terminal.call->WriteStdin("go\n", false).ok());
  EXPECT_EQ(terminal.recording->WaitForEnd().exit_code(), 0);
  EXPECT_EQ(terminal.recording->out(), "go\r\n33 77\r\n");
  again.recording->AcknowledgeTo(nullptr);
  ended.recording->AcknowledgeTo(nullptr);
  terminal.recording->AcknowledgeTo(nullptr);
  again.call->Release();
  terminal.call->Release();
}

REGISTER_TYPED_TEST_SUITE_P(TierCases, RunsACommandAndTellsItsExitCode,
                            StreamsOutputWhileTheCommandWaitsForInput,
                            PassesLargeInputAndOutputWhole, GivesEnvironmentUserAndWorkingDirectory,
                            ABestEffortCallHasTheIdlePolicy, TellsWhyACommandCannotStart, ToldSignalsFromLimits,
                            KillsWhatIgnoresSignalsAtItsTimeLimit, SignalsAndCancels,
                            EndsAMemoryEaterWithItsOwnOutcome, EndsAFloodOfOutput,
                            HoldsOutputThatIsNotAcknowledgedAndLosesNone, BoundsAForkBomb,
                            HasNoNetwork, KeepsStateBetweenCallsAndSandboxesApart,
                            LaysInputFilesBesideTheCommand, ServesFiles,
                            WatchesADirectoryAndWhatIsBelowIt, RunsOnATerminal,
                            InterruptsTheForegroundOfATerminalAndHangsItUp, CallsOutliveTheTier);

}  // namespace reprise::sandboxd
