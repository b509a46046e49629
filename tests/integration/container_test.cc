// Calls in containers: output, input, ends, limits, isolation and files, against a real containerd.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "tests/integration/container_support.h"

namespace reprise::sandboxd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST_F(ContainerTest, RunsACommandAndTellsItsExitCode) {
  const TestSandbox box = Create();
  const Done done = Run(box, "echo out; echo err >&2; pwd; exit 7");
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_EXITED) << done.result.ShortDebugString();
  EXPECT_EQ(done.result.exit_code(), 7);
  EXPECT_EQ(done.out, "out\n/work\n");
  EXPECT_EQ(done.err, "err\n");
  EXPECT_GT(done.result.usage().wall_us(), 0);
  EXPECT_GT(done.result.usage().memory_peak_bytes(), 0u);
}

TEST_F(ContainerTest, StreamsOutputWhileTheCommandWaitsForInput) {
  const TestSandbox box = Create();
  sandbox::ExecuteRequest request =
      Shell(box, "echo ready; while read line; do echo \"got $line\"; done; echo end");
  request.set_stdin("first\n");
  request.set_stdin_open(true);
  Running running = Start(box, request);
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

TEST_F(ContainerTest, PassesLargeInputAndOutputWhole) {
  const TestSandbox box = Create();
  sandbox::ExecuteRequest request = Shell(box, "cat");
  std::string data(8 << 20, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 2654435761u >> 13);
  request.set_stdin(data);
  const Done done = Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_EXITED) << done.result.ShortDebugString();
  EXPECT_TRUE(done.out == data);
  EXPECT_EQ(done.result.stdout_bytes(), data.size());
}

TEST_F(ContainerTest, GivesEnvironmentUserAndWorkingDirectory) {
  const TestSandbox box = Create();
  sandbox::ExecuteRequest request = Shell(box, "echo $GREETING; id -u; pwd; echo $HOME");
  request.set_user("user");
  request.set_working_dir("/tmp");
  sandbox::EnvVar* variable = request.add_env();
  variable->set_name("GREETING");
  variable->set_value("hello there");
  EXPECT_EQ(Run(box, request).out, "hello there\n1000\n/tmp\n/tmp\n");
}

TEST_F(ContainerTest, TellsWhyACommandCannotStart) {
  const TestSandbox box = Create();
  sandbox::ExecuteRequest request = Shell(box, "");
  request.clear_argv();
  request.add_argv("no-such-program");
  Done done = Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_SETUP_FAILED);
  EXPECT_THAT(done.result.message(), HasSubstr("no-such-program"));
  request = Shell(box, "true");
  request.set_working_dir("/nowhere");
  done = Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_SETUP_FAILED);
  EXPECT_THAT(done.result.message(), HasSubstr("working directory"));
}

TEST_F(ContainerTest, RefusesWhatItCannotDo) {
  const TestSandbox box = Create();
  Running nothing;
  sandbox::ExecuteRequest request = Shell(box, "true");
  request.mutable_limits()->set_memory_bytes(1 << 20);
  EXPECT_TRUE(absl::IsUnimplemented(
      tier_->Start(box.ref(), box.placement, request, nothing.recording->Sink()).status()));
  request = Shell(box, "true");
  request.set_user("nobody-knows");
  const Done done = Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_SETUP_FAILED);
  EXPECT_THAT(done.result.message(), HasSubstr("nobody-knows"));

  auto create = [&](const std::function<void(sandbox::SandboxSpec&)>& change) {
    sandbox::SandboxSpec spec = box.spec;
    change(spec);
    return std::string(tier_->CreateSandbox("x", spec, nullptr).status().message());
  };
  EXPECT_THAT(create([](auto& spec) { spec.set_image("not-imported"); }),
              HasSubstr("import it first"));
  EXPECT_THAT(create([](auto& spec) { spec.clear_image(); }), HasSubstr("spec.image"));
  EXPECT_THAT(create([](auto& spec) { spec.set_runtime("no-such-runtime"); }),
              HasSubstr("no-such-runtime"));
  EXPECT_THAT(create([](auto& spec) { spec.set_runtime("../runc"); }), HasSubstr("spec.runtime"));
  EXPECT_THAT(create([](auto& spec) {
                sandbox::Bind* bind = spec.add_binds();
                bind->set_host_path("/tmp");
                bind->set_sandbox_path("/x/../proc/here");
              }),
              HasSubstr("refused"));
  EXPECT_EQ(nothing.recording->ends, 0);
}

TEST_F(ContainerTest, ToldSignalsFromLimits) {
  const TestSandbox box = Create();
  Done done = Run(box, "kill -SEGV $$");
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_SIGNALED) << done.result.ShortDebugString();
  EXPECT_EQ(done.result.signal(), SIGSEGV);
  done = Run(box, "kill -KILL $$");
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_SIGNALED) << done.result.ShortDebugString();
  EXPECT_EQ(done.result.signal(), SIGKILL);
  sandbox::ExecuteRequest request = Shell(box, "while :; do :; done");
  request.mutable_limits()->set_cpu_ms(1000);
  done = Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_TIMED_OUT) << done.result.ShortDebugString();
  EXPECT_THAT(done.result.message(), HasSubstr("CPU limit of 1 s"));
}

TEST_F(ContainerTest, KillsWhatIgnoresSignalsAtItsTimeLimit) {
  const TestSandbox box = Create();
  sandbox::ExecuteRequest request = Shell(box,
                                          "trap '' TERM INT HUP; (trap '' TERM; setsid sleep 1000) "
                                          "& echo up; while :; do sleep 1000; done");
  request.mutable_limits()->set_timeout_ms(700);
  const Done done = Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_TIMED_OUT) << done.result.ShortDebugString();
  EXPECT_EQ(done.out, "up\n");
  EXPECT_GE(done.result.usage().wall_us(), 700'000);
  EXPECT_EQ(Run(box, "pidof sleep").result.exit_code(), 1)
      << "something of the call is still alive";
}

TEST_F(ContainerTest, SignalsAndCancels) {
  const TestSandbox box = Create();
  Running running = Start(
      box, Shell(box, "trap 'echo caught; exit 3' USR1; echo up; while :; do sleep 0.1; done"));
  ASSERT_NE(running.call, nullptr);
  EXPECT_TRUE(running.recording->WaitForText("up\n"));
  EXPECT_TRUE(running.call->Signal(SIGUSR1).ok());
  EXPECT_EQ(running.recording->WaitForEnd().exit_code(), 3);
  EXPECT_FALSE(running.call->Signal(SIGUSR1).ok()) << "it has ended";

  running = Start(box, Shell(box, "echo up; sleep 1000"));
  ASSERT_NE(running.call, nullptr);
  EXPECT_TRUE(running.recording->WaitForText("up\n"));
  EXPECT_TRUE(running.call->Cancel().ok());
  EXPECT_EQ(running.recording->WaitForEnd().outcome(), sandbox::OUTCOME_CANCELLED);
}

TEST_F(ContainerTest, EndsAMemoryEaterWithItsOwnOutcome) {
  const TestSandbox box =
      Create([](auto& spec) { spec.mutable_limits()->set_memory_bytes(64 << 20); });
  const std::string eater = "exec awk 'BEGIN { s = \"x\"; while (1) s = s s }'";
  Done done = Run(box, eater);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_MEMORY_EXCEEDED)
      << done.result.ShortDebugString();
  // As the child of a shell, and by a second call, whose sandbox still works.
  done = Run(box, "awk 'BEGIN { s = \"x\"; while (1) s = s s }'; exit $?");
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_MEMORY_EXCEEDED)
      << done.result.ShortDebugString();
  done = Run(box, "kill -KILL $$");
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_SIGNALED) << "no memory was eaten by this one";
  EXPECT_EQ(Run(box, "echo fine").out, "fine\n");
}

TEST_F(ContainerTest, EndsAFloodOfOutput) {
  const TestSandbox box = Create();
  sandbox::ExecuteRequest request = Shell(box, "yes");
  request.mutable_limits()->set_output_bytes_max(3 << 20);
  const Done done = Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_OUTPUT_TRUNCATED)
      << done.result.ShortDebugString();
  EXPECT_EQ(done.out.size(), 3u << 20);
}

TEST_F(ContainerTest, HoldsOutputThatIsNotAcknowledgedAndLosesNone) {
  const TestSandbox box = Create();
  constexpr size_t kBytes = 4 << 20;
  Running running = Start(box, Shell(box, fmt::format("yes | head -c {}", kBytes)));
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

TEST_F(ContainerTest, BoundsAForkBomb) {
  const TestSandbox box = Create([](auto& spec) { spec.mutable_limits()->set_pids(64); });
  // The first shell only waits: one that had to fork would end the call itself.
  sandbox::ExecuteRequest request = Shell(box, "bomb() { bomb | bomb & }; (bomb); read never");
  request.set_stdin_open(true);
  request.mutable_limits()->set_timeout_ms(1500);
  const Done done = Run(box, request);
  EXPECT_EQ(done.result.outcome(), sandbox::OUTCOME_TIMED_OUT) << done.result.ShortDebugString();
  EXPECT_EQ(Run(box, "echo fine").out, "fine\n");
}

TEST_F(ContainerTest, HasNoNetwork) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const TestSandbox box = Create();
  const Done done = Run(box, fmt::format("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '; "
                                         "nc -w 2 127.0.0.1 {} </dev/null && echo reached",
                                         ntohs(address.sin_port)));
  EXPECT_EQ(done.out, "lo\n");
  close(listener);
}

TEST_F(ContainerTest, ShowsNothingOfTheHost) {
  const std::string secret = scratch_.path() + "/secret";
  ASSERT_TRUE(base::WriteFileAtomic(secret, "secret of the host").ok());
  const TestSandbox box = Create();
  EXPECT_NE(Run(box, "cat " + secret).result.exit_code(), 0);
  // Its root is nobody on the host, has no capability, sees its own processes only, and no way back
  // to the agent.
  EXPECT_THAT(Run(box, "cat /proc/self/uid_map").out, Not(HasSubstr("         0          0")));
  EXPECT_THAT(Run(box, "grep -E 'CapEff|CapBnd|CapPrm|NoNewPrivs|Seccomp:' /proc/self/status").out,
              AllOf(HasSubstr("CapEff:\t0000000000000000"), HasSubstr("CapPrm:\t0000000000000000"),
                    HasSubstr("CapBnd:\t0000000000000000"), HasSubstr("NoNewPrivs:\t1"),
                    HasSubstr("Seccomp:\t2")));
  EXPECT_EQ(Run(box, "ls /.reprise/run").out, "");
  for (const char* const attempt :
       {"mount -t tmpfs none /tmp", "chroot / true", "ls /proc/1/root", "cat /proc/1/environ",
        "unshare -U true", "mknod /tmp/disk b 8 0", "echo x > /proc/sys/kernel/hostname",
        "echo x > /proc/sysrq-trigger", "cat /proc/kcore", "echo x > /.reprise/agent", "dmesg",
        "hostname other", "mkdir /sys/fs/cgroup/x"}) {
    EXPECT_NE(Run(box, attempt).result.exit_code(), 0) << attempt << " was possible";
  }
  Run(box, "kill -9 1");  // succeeds and does nothing: so the kernel treats the init of a namespace
  EXPECT_EQ(Run(box, "echo fine").out, "fine\n") << "one of the attempts broke the sandbox";
}

TEST_F(ContainerTest, KeepsStateBetweenCallsAndSandboxesApart) {
  const TestSandbox a = Create(), b = Create();
  EXPECT_EQ(Run(a, "echo kept > /work/file; echo kept > /etc/file").result.exit_code(), 0);
  EXPECT_EQ(Run(a, "cat /work/file /etc/file").out, "kept\nkept\n");
  EXPECT_NE(Run(b, "cat /work/file").result.exit_code(), 0);
  struct stat info;
  EXPECT_NE(stat((BusyboxRoot() + "/etc/file").c_str(), &info), 0);
}

TEST_F(ContainerTest, BindsHostDirectories) {
  const std::string shared = scratch_.path() + "/shared";
  ASSERT_TRUE(base::MakeDirs(shared, 0755).ok());
  ASSERT_TRUE(base::WriteFileAtomic(shared + "/given", "given").ok());
  const TestSandbox box = Create([&](auto& spec) {
    for (const bool writable : {false, true}) {
      sandbox::Bind* bind = spec.add_binds();
      bind->set_host_path(shared);
      bind->set_sandbox_path(writable ? "/mnt/rw" : "/mnt/ro");
      bind->set_writable(writable);
    }
  });
  EXPECT_EQ(Run(box, "cat /mnt/ro/given").out, "given");
  EXPECT_NE(Run(box, "echo x > /mnt/ro/new").result.exit_code(), 0);
  const Done done = Run(box, "echo made > /mnt/rw/new");
  EXPECT_EQ(done.result.exit_code(), 0) << done.err;
  EXPECT_EQ(base::ReadFile(shared + "/new").value_or(""), "made\n");
  struct stat info;
  ASSERT_EQ(stat((shared + "/new").c_str(), &info), 0);
  EXPECT_EQ(info.st_uid, 0u) << "the owner inside is the owner on the host";
}

TEST_F(ContainerTest, LaysInputFilesBesideTheCommand) {
  const TestSandbox box = Create();
  sandbox::ExecuteRequest request = Shell(box, "cat data/in.txt; ./tool");
  sandbox::InputFile* file = request.add_files();
  file->set_path("data/in.txt");
  file->set_content("input\n");
  file = request.add_files();
  file->set_path("tool");
  file->set_content("#!/bin/sh\necho tool\n");
  file->set_mode(0755);
  EXPECT_EQ(Run(box, request).out, "input\ntool\n");
}

TEST_F(ContainerTest, ServesFiles) {
  const TestSandbox box = Create();
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
    absl::Status status = tier_->ReadFile(ref, path, [&](std::string_view chunk) {
      data += chunk;
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    return data;
  };
  ASSERT_TRUE(tier_->MakeDir(ref, "/work/a/b").ok());
  absl::Status status = tier_->WriteFile(ref, "/work/a/b/file", 0600, next);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(read("/work/a/b/file").value_or(""), content);
  EXPECT_EQ(read("a/b/file").value_or(""), content) << "relative to the working directory";
  EXPECT_TRUE(absl::IsNotFound(read("/work/none").status())) << read("/work/none").status();
  EXPECT_FALSE(read("/work").ok());
  ASSERT_TRUE(tier_->Move(ref, "/work/a/b/file", "/work/moved").ok());
  Run(box, "ln -s /etc/passwd /work/link");
  absl::StatusOr<std::vector<sandbox::FileInfo>> entries = tier_->ListDir(ref, "/work");
  ASSERT_TRUE(entries.ok()) << entries.status();
  std::vector<std::string> names;
  for (const sandbox::FileInfo& entry : *entries)
    names.push_back(entry.name() + ">" + entry.link_target());
  EXPECT_THAT(names, ElementsAre("a>", "link>/etc/passwd", "moved>"));
  EXPECT_EQ((*entries)[2].size(), content.size());
  EXPECT_EQ((*entries)[2].mode() & 07777, 0600u);
  ASSERT_TRUE(tier_->Remove(ref, "/work/link").ok());
  ASSERT_TRUE(tier_->Remove(ref, "/work/a").ok());
  EXPECT_NE(read("/etc/passwd").value_or(""), "") << "a link was followed when it was removed";
  EXPECT_TRUE(absl::IsNotFound(tier_->ListDir(ref, "/work/a").status()));
  // An error while data is on its way is told, and a source that fails leaves the tier usable.
  at = 0;
  EXPECT_FALSE(tier_->WriteFile(ref, "/proc/version", 0, next).ok());
  EXPECT_TRUE(
      absl::IsAborted(tier_->WriteFile(ref, "/work/broken", 0, []() -> absl::StatusOr<std::string> {
        return absl::AbortedError("gone");
      })));
  EXPECT_EQ(Run(box, "echo fine").out, "fine\n");
}

}  // namespace
}  // namespace reprise::sandboxd
