// The function tier against programs that misbehave: each ends with its outcome and a message, sees
// nothing of the host, and leaves nothing behind. Also what the tier promises to a daemon that was
// killed.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <sstream>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "base/fd.h"
#include "sandboxd/function/control.h"
#include "sandboxd/function/function_tier.h"
#include "tests/killed_child.h"
#include "tests/security/tier_call.h"

namespace reprise::sandboxd {
namespace {

using testing::HasSubstr;
using testing::Not;

std::unique_ptr<Substrate> MakeTier(const std::string& state) {
  FunctionTierOptions options;
  options.state_dir = state;
  options.helper_dir = REPRISE_BIN_DIR;
  options.pool = 2;
  options.max = 8;
  auto tier = MakeFunctionTier(options);
  EXPECT_TRUE(tier.ok()) << tier.status();
  return tier.ok() ? std::move(*tier) : nullptr;
}

class FunctionTierTest : public testing::Test {
 protected:
  void SetUp() override {
    tier_ = MakeTier(state_.path());
    ASSERT_NE(tier_, nullptr);
    const sandbox::TierInfo info = tier_->Describe();
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ASSERT_TRUE(info.usable()) << info.reason();
    spec_.set_tier(sandbox::TIER_FUNCTION);
  }
  SandboxRef sandbox() const { return {"box", &spec_, "function"}; }

  TierCall Start(const sandbox::ExecuteRequest& request, bool acknowledge = true) {
    auto call = StartCall(tier_.get(), sandbox(), request, acknowledge);
    EXPECT_TRUE(call.ok()) << call.status();
    return call.ok() ? *std::move(call) : TierCall();
  }
  // Runs to the end and releases.
  std::shared_ptr<CallRecord> Run(const sandbox::ExecuteRequest& request) {
    TierCall call = Start(request);
    EXPECT_TRUE(call.record->WaitEnd());
    if (call.record->call() != nullptr) call.record->call()->Release();
    return call.record;
  }
  void BindShared(const std::string& directory) {
    auto* bind = spec_.add_binds();
    bind->set_host_path(directory);
    bind->set_sandbox_path("/mnt/s");
    bind->set_writable(true);
  }
  std::shared_ptr<CallRecord> Sh(const std::string& script) { return Run(ShellRequest(script)); }

  base::ScratchDir state_;
  sandbox::SandboxSpec spec_;
  std::unique_ptr<Substrate> tier_;
};

// ---- ordinary programs

TEST_F(FunctionTierTest, RunsACommandWithItsEnvironmentStreamsAndExitCode) {
  auto request = ShellRequest(
      "cat; echo \"$WHO $REPRISE_CALL_ID $HOME $(id -u) $PWD\"; echo bad >&2; exit 7", "a/b/1");
  auto* variable = request.add_env();
  variable->set_name("WHO");
  variable->set_value("me");
  request.set_stdin("typed\n");
  const auto record = Run(request);
  EXPECT_EQ(record->result().outcome(), sandbox::OUTCOME_EXITED) << record->result().message();
  EXPECT_EQ(record->result().exit_code(), 7);
  EXPECT_EQ(record->out(), "typed\nme a/b/1 /work 1000 /work\n");
  EXPECT_EQ(record->err(), "bad\n");
  EXPECT_GT(record->result().usage().wall_us(), 0);
}

TEST_F(FunctionTierTest, CompilersAndInterpretersWork) {
  const auto python =
      Sh("command -v python3 >/dev/null || exit 0; python3 -c 'import threading, subprocess, "
         "tempfile; "
         "print(subprocess.check_output([\"echo\", \"hi\"]))'");
  EXPECT_EQ(python->result().exit_code(), 0) << python->err();
  const auto c =
      Sh("command -v cc >/dev/null || exit 0; echo 'int main(){return 5;}' > a.c && cc a.c -o a && "
         "./a; test $? = 5");
  EXPECT_EQ(c->result().exit_code(), 0) << c->err();
}

TEST_F(FunctionTierTest, InputFilesAreThereAndNothingOfTheCallBeforeIs) {
  auto request = ShellRequest(
      "cat dir/in.txt; ls -l dir/run.sh | cut -c1-10; echo left > /work/left; echo left > "
      "/tmp/left");
  auto* file = request.add_files();
  file->set_path("dir/in.txt");
  file->set_content(std::string("content\n"));
  file = request.add_files();
  file->set_path("dir/run.sh");
  file->set_content(std::string(200 << 10, 'x'));
  file->set_mode(0755);
  EXPECT_EQ(Run(request)->out(), "content\n-rwxr-xr-x\n");
  for (int i = 0; i < 4; ++i)
    EXPECT_EQ(Sh("ls -A /work /tmp /dev/shm")->out(), "/dev/shm:\n\n/tmp:\n\n/work:\n");
}

TEST_F(FunctionTierTest, StandardInputCanStayOpen) {
  auto request = ShellRequest("read a; echo got $a; read b; echo then $b; cat");
  request.set_stdin_open(true);
  TierCall call = Start(request);
  ASSERT_TRUE(call.record->call()->WriteStdin("one\n", false).ok());
  ASSERT_TRUE(call.record->WaitOutput(8));
  ASSERT_TRUE(call.record->call()->WriteStdin("two\nrest", true).ok());
  ASSERT_TRUE(call.record->WaitEnd());
  EXPECT_EQ(call.record->out(), "got one\nthen two\nrest");
  call.record->call()->Release();
}

TEST_F(FunctionTierTest, SignalsReachTheCommandAndCancelEndsIt) {
  TierCall call = Start(
      ShellRequest("trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.01; done"));
  ASSERT_TRUE(call.record->WaitOutput(6));
  EXPECT_TRUE(call.record->call()->Signal(SIGUSR1).ok());
  ASSERT_TRUE(call.record->WaitEnd());
  EXPECT_EQ(call.record->result().exit_code(), 3);
  call.record->call()->Release();

  TierCall other = Start(ShellRequest("echo ready; sleep 1000"));
  ASSERT_TRUE(other.record->WaitOutput(6));
  EXPECT_TRUE(other.record->call()->Cancel().ok());
  ASSERT_TRUE(other.record->WaitEnd());
  EXPECT_EQ(other.record->result().outcome(), sandbox::OUTCOME_CANCELLED);
  other.record->call()->Release();
}

TEST_F(FunctionTierTest, ACommandThatCannotStartSaysWhy) {
  sandbox::ExecuteRequest request;
  request.set_call_id("x");
  request.add_argv("no-such-program");
  auto record = Run(request);
  EXPECT_EQ(record->result().outcome(), sandbox::OUTCOME_SETUP_FAILED);
  EXPECT_THAT(record->result().message(), HasSubstr("no-such-program"));
  EXPECT_THAT(record->result().message(), HasSubstr("No such file"));
  auto elsewhere = ShellRequest("pwd");
  elsewhere.set_working_dir("/usr/not/there");
  record = Run(elsewhere);
  EXPECT_EQ(record->result().outcome(), sandbox::OUTCOME_SETUP_FAILED);
  EXPECT_THAT(record->result().message(), HasSubstr("/usr/not"));
  auto user = ShellRequest("id");
  user.set_user("root");
  record = Run(user);
  EXPECT_EQ(record->result().outcome(), sandbox::OUTCOME_SETUP_FAILED);
}

TEST_F(FunctionTierTest, HasATerminalOfItsOwn) {
  auto request = ShellRequest(
      "tty; echo \"$TERM\"; stty size; ls /dev/pts; read line; stty size </dev/tty; exit 6");
  request.set_stdin_open(true);
  request.mutable_pty()->set_rows(30);
  request.mutable_pty()->set_columns(100);
  TierCall call = Start(request);
  const std::string first = "/dev/pts/0\r\nxterm-256color\r\n30 100\r\n0  ptmx\r\n";
  ASSERT_TRUE(call.record->WaitOutput(first.size())) << call.record->out();
  EXPECT_EQ(call.record->out(), first);
  ASSERT_TRUE(call.record->call()->Resize(41, 121).ok());
  ASSERT_TRUE(call.record->call()->WriteStdin("go\n", false).ok());
  ASSERT_TRUE(call.record->WaitEnd());
  EXPECT_EQ(call.record->out(), first + "go\r\n41 121\r\n");
  EXPECT_EQ(call.record->result().exit_code(), 6) << call.record->result().message();
  call.record->call()->Release();

  // The foreground program is interrupted, the shell goes on.
  request = ShellRequest("");
  request.clear_argv();
  request.add_argv("sh");
  request.add_argv("-i");
  request.set_stdin_open(true);
  request.mutable_pty();
  TierCall shell = Start(request);
  ASSERT_TRUE(
      shell.record->call()->WriteStdin("sh -c 'echo u\"p\"; exec sleep 1000'\n", false).ok());
  ASSERT_TRUE(shell.record->WaitText("up\r\n")) << shell.record->out();
  ASSERT_TRUE(shell.record->call()->WriteStdin("\x03", false).ok());
  ASSERT_TRUE(shell.record->call()->WriteStdin("echo code $?\n", true).ok());
  ASSERT_TRUE(shell.record->WaitEnd());
  EXPECT_THAT(shell.record->out(), HasSubstr("code 130\r\n"));
  EXPECT_THAT(shell.record->out(), Not(HasSubstr("job control")));
  shell.record->call()->Release();

  request = ShellRequest("seq 1 20000");
  request.mutable_pty();
  EXPECT_THAT(Run(request)->out(), testing::EndsWith("\r\n20000\r\n"));
  EXPECT_THAT(Sh("tty; ls /dev/pts")->out(), HasSubstr("not a tty"));
  TierCall pipes = Start(ShellRequest("echo on; sleep 1000"));
  ASSERT_TRUE(pipes.record->WaitOutput(3));
  EXPECT_TRUE(absl::IsInvalidArgument(pipes.record->call()->Resize(2, 2)));
  EXPECT_TRUE(pipes.record->call()->Cancel().ok());
  ASSERT_TRUE(pipes.record->WaitEnd());
  pipes.record->call()->Release();
}

TEST_F(FunctionTierTest, ProgramsCannotTypeIntoTheirTerminal) {
  auto request = ShellRequest("./typist");
  auto* file = request.add_files();
  file->set_path("typist");
  file->set_content(base::ReadFile(std::string(REPRISE_BIN_DIR) + "/../tests/typist").value_or(""));
  file->set_mode(0755);
  request.mutable_pty();
  const auto record = Run(request);
  EXPECT_EQ(record->out(), "typed 0\r\n") << record->result().message();
}

// ---- limits

TEST_F(FunctionTierTest, TimeLimitKillsWhatIgnoresSigterm) {
  auto request = ShellRequest(
      "trap '' TERM INT HUP; echo on; (trap '' TERM; sleep 500) & while :; do sleep 1; done");
  request.mutable_limits()->set_timeout_ms(300);
  const auto record = Run(request);
  EXPECT_EQ(record->result().outcome(), sandbox::OUTCOME_TIMED_OUT);
  EXPECT_THAT(record->result().message(), HasSubstr("300 ms"));
  EXPECT_EQ(record->out(), "on\n");
}

TEST_F(FunctionTierTest, ABestEffortCallCannotLeaveTheIdlePolicy) {
  auto request = ShellRequest(
      "python3 -c 'import os\n"
      "print(os.sched_getscheduler(0) == os.SCHED_IDLE)\n"
      "try: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))\n"
      "except PermissionError: print(\"stays\")'");
  EXPECT_EQ(Run(request)->out(), "False\nstays\n");
  request.mutable_limits()->set_best_effort(true);
  EXPECT_EQ(Run(request)->out(), "True\nstays\n");
}

TEST_F(FunctionTierTest, CpuLimitEndsABurner) {
  auto request = ShellRequest("while :; do :; done");
  request.mutable_limits()->set_cpu_ms(1000);
  const auto record = Run(request);
  EXPECT_EQ(record->result().outcome(), sandbox::OUTCOME_TIMED_OUT);
  EXPECT_THAT(record->result().message(), HasSubstr("CPU limit of 1 s"));
}

TEST_F(FunctionTierTest, MemoryEaterIsKilledAtItsLimit) {
  auto request = ShellRequest("x=a; while :; do x=$x$x; done");
  request.mutable_limits()->set_memory_bytes(48 << 20);
  const auto record = Run(request);
  EXPECT_EQ(record->result().outcome(), sandbox::OUTCOME_MEMORY_EXCEEDED)
      << record->result().message();
  EXPECT_THAT(record->result().message(), HasSubstr("50331648"));
  // Files in the scratch space count as memory too.
  auto files = ShellRequest("head -c 60000000 /dev/zero > /dev/shm/x; echo $?");
  files.mutable_limits()->set_memory_bytes(32 << 20);
  files.mutable_limits()->set_disk_bytes(256 << 20);
  EXPECT_NE(Run(files)->out(), "0\n");
}

TEST_F(FunctionTierTest, ForkBombIsBoundedAndGoneAfterwards) {
  auto request = ShellRequest("b() { b | b & }; b; sleep 100");
  request.mutable_limits()->set_timeout_ms(1500);
  request.mutable_limits()->set_pids(32);
  const auto record = Run(request);
  EXPECT_NE(record->result().outcome(), sandbox::OUTCOME_UNSPECIFIED);
  EXPECT_NE(record->result().outcome(), sandbox::OUTCOME_SANDBOX_LOST)
      << record->result().message();
  // The tier is as usable as before.
  EXPECT_EQ(Sh("echo fine")->out(), "fine\n");
}

TEST_F(FunctionTierTest, OutputFloodIsCutAtItsLimit) {
  auto request = ShellRequest("yes");
  request.mutable_limits()->set_output_bytes_max(3 << 20);
  const auto record = Run(request);
  EXPECT_EQ(record->result().outcome(), sandbox::OUTCOME_OUTPUT_TRUNCATED);
  EXPECT_EQ(record->out().size(), size_t{3 << 20});
  EXPECT_FALSE(record->gap());
}

TEST_F(FunctionTierTest, OutputThatNobodyAcknowledgesBlocksTheProgramAndLosesNothing) {
  TierCall call = Start(ShellRequest("head -c 3000000 /dev/zero | tr '\\0' x; echo done >&2"),
                        /*acknowledge=*/false);
  ASSERT_TRUE(call.record->WaitOutput(1 << 20));
  EXPECT_FALSE(call.record->WaitEnd(absl::Milliseconds(300)));
  EXPECT_LE(call.record->out().size(), size_t{(1 << 20) + (64 << 10)});
  call.record->set_acknowledge(true);
  call.record->call()->Acknowledge(sandbox::STREAM_STDOUT, call.record->out().size());
  ASSERT_TRUE(call.record->WaitEnd());
  EXPECT_EQ(call.record->out(), std::string(3000000, 'x'));
  EXPECT_EQ(call.record->err(), "done\n");
  call.record->call()->Release();
}

TEST_F(FunctionTierTest, DiskInodesFilesAndDescriptorsAreBounded) {
  auto request =
      ShellRequest("head -c 40000000 /dev/zero > big 2>/dev/null; test $? != 0 && wc -c < big");
  request.mutable_limits()->set_disk_bytes(8 << 20);
  EXPECT_EQ(Run(request)->out(), "8388608\n");
  request = ShellRequest("head -c 5000000 /dev/zero > big; exit $?");
  request.mutable_limits()->set_file_bytes(1 << 20);
  EXPECT_NE(Run(request)->result().exit_code(), 0);
  request = ShellRequest("i=0; while [ $i -lt 100000 ]; do : > f$i || exit 9; i=$((i+1)); done");
  EXPECT_EQ(Run(request)->result().exit_code(), 2) << "dash ends when it cannot make a file";
  request = ShellRequest("ulimit -n; ulimit -c");
  EXPECT_EQ(Run(request)->out(), "256\n0\n");
}

// ---- isolation

TEST_F(FunctionTierTest, HostFilesProcessesAndNetworksAreNotThere) {
  const auto record = Sh(R"(
    ls /root 2>&1; cat /etc/shadow 2>&1; ls / ; ps_count=$(ls -d /proc/[0-9]* | wc -l); [ $ps_count -le 8 ] || echo many $ps_count
    cat /proc/1/environ 2>&1; ls /sys; cat /proc/net/dev | wc -l; cat /proc/kcore 2>&1 | head -c 1; echo x > /proc/sys/kernel/hostname
    touch /usr/x /etc/x /x 2>&1; ls -l /proc/self/fd | wc -l; hostname)");
  const std::string all = record->out() + record->err();
  EXPECT_THAT(all, HasSubstr("/etc/shadow: No such file"));
  EXPECT_THAT(all, Not(HasSubstr("many")));
  EXPECT_THAT(all, HasSubstr("/proc/1/environ: Permission denied"));
  EXPECT_THAT(all, HasSubstr("cannot touch '/usr/x'"));
  EXPECT_THAT(all, HasSubstr("cannot touch '/etc/x'"));
  EXPECT_THAT(all, HasSubstr("cannot touch '/x'"));
  EXPECT_THAT(all, HasSubstr("function"));
  EXPECT_EQ(all.find("scratch"), std::string::npos) << all;
}

TEST_F(FunctionTierTest, PrivilegesAreGone) {
  const auto record =
      Sh("grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status; cat /proc/self/uid_map");
  EXPECT_THAT(record->out(), HasSubstr("CapPrm:\t0000000000000000"));
  EXPECT_THAT(record->out(), HasSubstr("CapEff:\t0000000000000000"));
  EXPECT_THAT(record->out(), HasSubstr("CapBnd:\t0000000000000000"));
  EXPECT_THAT(record->out(), HasSubstr("CapAmb:\t0000000000000000"));
  EXPECT_THAT(record->out(), HasSubstr("NoNewPrivs:\t1"));
  EXPECT_THAT(record->out(), HasSubstr("Seccomp:\t2"));
  EXPECT_THAT(record->out(), HasSubstr("      1000 "));
}

TEST_F(FunctionTierTest, ForbiddenCallsAreKilledOrRefused) {
  EXPECT_THAT(Sh("exec unshare -r true")->result().outcome(), sandbox::OUTCOME_POLICY_VIOLATION);
  EXPECT_THAT(Sh("exec mount -t tmpfs none /tmp")->result().outcome(),
              sandbox::OUTCOME_POLICY_VIOLATION);
  const auto python = Sh(R"(command -v python3 >/dev/null || { echo 13 1 38 1 1; exit; }
exec python3 -c '
import ctypes, socket, os
libc = ctypes.CDLL(None, use_errno=True)
def call(*a):
    ctypes.set_errno(0); libc.syscall(*a); return ctypes.get_errno()
def sock(*a):
    try: socket.socket(*a); return 0
    except OSError as e: return e.errno
print(sock(socket.AF_NETLINK, socket.SOCK_RAW), call(101, 0, 0, 0, 0), call(425, 8, 0), call(250, 0, 0), sock(40, socket.SOCK_STREAM))
s = socket.socket()
try: s.connect(("127.0.0.1", 22))
except OSError as e: print(e.errno)
')");
  EXPECT_THAT(python->out(), HasSubstr("1 1 38 1 1\n")) << python->err();
}

TEST_F(FunctionTierTest, NothingOfACallLivesOn) {
  base::ScratchDir shared;
  ASSERT_EQ(::chmod(shared.path().c_str(), 0777), 0);
  auto* bind = spec_.add_binds();
  bind->set_host_path(shared.path());
  bind->set_sandbox_path("/mnt/shared");
  bind->set_writable(true);
  const auto record =
      Sh("(setsid sh -c 'while :; do date +%s%N > /mnt/shared/alive; done' >/dev/null 2>&1 &) ; "
         "while [ ! -s "
         "/mnt/shared/alive ]; do :; done; echo started");
  EXPECT_EQ(record->out(), "started\n");
  // Whoever wrote that file is dead: it stays as it is now.
  const std::string last = *base::ReadFile(shared.path() + "/alive");
  EXPECT_EQ(Sh("sleep 0.2; echo")->out(), "\n");
  EXPECT_EQ(*base::ReadFile(shared.path() + "/alive"), last);
}

TEST_F(FunctionTierTest, BindsAreReadOnlyUnlessAsked) {
  base::ScratchDir shared;
  ASSERT_EQ(::chmod(shared.path().c_str(), 0777), 0);
  ASSERT_TRUE(base::WriteFileAtomic(shared.path() + "/file", "text").ok());
  auto* bind = spec_.add_binds();
  bind->set_host_path(shared.path());
  bind->set_sandbox_path("/work/in");
  bind = spec_.add_binds();
  bind->set_host_path(shared.path() + "/file");
  bind->set_sandbox_path("/data/one/file");
  const auto record =
      Sh("cat /work/in/file /data/one/file; echo x > /work/in/new || echo no; mount | grep -c ' "
         "/work/in .*ro,nosuid,nodev'");
  EXPECT_EQ(record->out(), "texttextno\n1\n") << record->err();
  spec_.clear_binds();
  bind = spec_.add_binds();
  bind->set_host_path(shared.path());
  bind->set_sandbox_path("/nowhere/x");
  const auto refused = Sh("true");
  EXPECT_EQ(refused->result().outcome(), sandbox::OUTCOME_SETUP_FAILED);
  EXPECT_THAT(refused->result().message(), HasSubstr("/nowhere/x"));
}

// ---- a daemon that was killed

// What StartAndDie gives its child, one a line: bytes of output to wait for, a directory to bind
// (or none), and the script.
TEST_F(FunctionTierTest, DISABLED_ChildThatDies) {
  if (ChildDir().empty()) GTEST_SKIP() << "runs as a child of tests that kill a daemon";
  std::istringstream given(ChildPoint());
  size_t output = 0;
  std::string bind, script;
  given >> output;
  given.ignore();
  std::getline(given, bind);
  std::getline(given, script);
  if (!bind.empty()) BindShared(bind);
  tier_->Shutdown();  // the test's own leaves nothing
  tier_.reset();
  // Its workers clean up behind themselves meanwhile.
  for (std::error_code ignored; std::filesystem::exists(state_.path(), ignored);)
    std::filesystem::remove_all(state_.path(), ignored);
  auto tier = MakeTier(ChildDir());
  auto call = StartCall(tier.get(), {"box", &spec_, "function"}, ShellRequest(script),
                        /*acknowledge=*/false);
  ASSERT_TRUE(call.ok() && call->record->WaitOutput(output));
  ASSERT_TRUE(base::WriteFileAtomic(ChildDir() + "/placement", call->placement).ok());
  ::raise(SIGKILL);
}

// Makes a tier in a process of its own, starts `script` in it, and kills it; answers with the
// placement of the call.
std::string StartAndDie(const std::string& state, const std::string& bind,
                        const std::string& script, size_t output) {
  const ChildEnd end = RunChild("FunctionTierTest.DISABLED_ChildThatDies", state,
                                std::to_string(output) + "\n" + bind + "\n" + script);
  EXPECT_TRUE(WIFSIGNALED(end.status) && WTERMSIG(end.status) == SIGKILL) << end.status;
  auto placement = base::ReadFile(state + "/placement");
  return placement.ok() ? *placement : "";
}

TEST_F(FunctionTierTest, ACallOutlivesItsDaemonAndIsFoundAgain) {
  base::ScratchDir state, shared;
  ASSERT_EQ(::chmod(shared.path().c_str(), 0777), 0);
  BindShared(shared.path());
  const std::string placement = StartAndDie(state.path(), shared.path(),
                                            "echo run >> /mnt/s/count; echo first; while [ ! -e "
                                            "/mnt/s/go ]; do sleep 0.01; done; echo second",
                                            6);
  ASSERT_FALSE(placement.empty());
  auto tier = MakeTier(state.path());
  auto record = std::make_shared<CallRecord>();
  record->set_base(2);
  std::unique_ptr<CallSink> sink = std::make_unique<CallRecord::Sink>(record);
  OutputPosition from;
  from.stdout_offset = 2;
  Attachment attachment = tier->Reattach(sandbox(), placement, "call", from, sink);
  ASSERT_EQ(attachment.state, AttachState::kAttached) << attachment.reason;
  record->Run(std::move(attachment.call));
  tier->RecoveryDone();
  ASSERT_TRUE(base::WriteFileAtomic(shared.path() + "/go", "").ok());
  ASSERT_TRUE(record->WaitEnd());
  EXPECT_EQ(record->out(), "rst\nsecond\n");
  EXPECT_FALSE(record->gap());
  EXPECT_EQ(record->result().outcome(), sandbox::OUTCOME_EXITED);
  EXPECT_EQ(*base::ReadFile(shared.path() + "/count"), "run\n");
  record->call()->Release();
}

TEST_F(FunctionTierTest, ACallThatEndedWithoutItsDaemonIsFoundWithItsResult) {
  // Everything of it, from the answer to the end, comes in one piece, or in more than one when
  // there is much output.
  for (const char* script : {"echo all", "seq 1 40000 >&2; echo all"}) {
    const TierCall first = Start(ShellRequest(script), /*acknowledge=*/false);
    ASSERT_TRUE(first.record->WaitEnd());
    first.record->Drop();
    auto record = std::make_shared<CallRecord>();
    std::unique_ptr<CallSink> sink = std::make_unique<CallRecord::Sink>(record);
    Attachment attachment = tier_->Reattach(sandbox(), first.placement, "call", {}, sink);
    ASSERT_EQ(attachment.state, AttachState::kAttached) << attachment.reason;
    record->Run(std::move(attachment.call));
    ASSERT_TRUE(record->WaitEnd(absl::Seconds(10)));
    EXPECT_EQ(record->out(), "all\n");
    EXPECT_EQ(record->err(), first.record->err());
    EXPECT_EQ(record->result().outcome(), sandbox::OUTCOME_EXITED);
    record->call()->Release();
  }
}

TEST_F(FunctionTierTest, LeftoversOfAKilledDaemonGo) {
  base::ScratchDir state;
  const std::string placement = StartAndDie(state.path(), "", "echo on; sleep 1000", 3);
  ASSERT_FALSE(placement.empty());
  auto tier = MakeTier(state.path());
  tier->RecoveryDone();
  std::unique_ptr<CallSink> sink =
      std::make_unique<CallRecord::Sink>(std::make_shared<CallRecord>());
  // The worker goes by itself once its call is killed; then nobody knows the placement any more.
  const std::string run_dir = state.path() + "/workers/" + placement;
  for (int i = 0; i < 500 && std::filesystem::exists(run_dir); ++i) ::usleep(10'000);
  EXPECT_FALSE(std::filesystem::exists(run_dir));
  EXPECT_EQ(tier->Reattach(sandbox(), placement, "call", {}, sink).state,
            AttachState::kNeverStarted);
}

TEST_F(FunctionTierTest, AReservedWorkerThatNeverStartedIsCertain) {
  auto placement = tier_->Reserve(sandbox());
  ASSERT_TRUE(placement.ok());
  std::unique_ptr<CallSink> sink =
      std::make_unique<CallRecord::Sink>(std::make_shared<CallRecord>());
  EXPECT_EQ(tier_->Reattach(sandbox(), *placement, "call", {}, sink).state,
            AttachState::kNeverStarted);
  // Having said so, it stays true: the worker refuses the call from now on.
  auto record = std::make_shared<CallRecord>();
  auto running = tier_->Start(
      sandbox(), *placement,
      ResolveRequest(ShellRequest("echo no"), spec_, tier_->Describe().default_limits()),
      std::make_unique<CallRecord::Sink>(record));
  ASSERT_TRUE(running.ok());
  record->Run(*std::move(running));
  ASSERT_TRUE(record->WaitEnd());
  EXPECT_EQ(record->result().outcome(), sandbox::OUTCOME_SETUP_FAILED);
  EXPECT_EQ(record->out(), "");
}

TEST_F(FunctionTierTest, ManyCallsInARowLeaveNoDirectoriesAndNoGroups) {
  for (int i = 0; i < 40; ++i)
    ASSERT_EQ(Sh("echo " + std::to_string(i))->out(), std::to_string(i) + "\n");
  tier_->Shutdown();
  const std::string workers = state_.path() + "/workers";
  auto count = [&] { return std::distance(std::filesystem::directory_iterator(workers), {}); };
  for (int i = 0; i < 500 && count() > 0; ++i) ::usleep(10'000);
  EXPECT_EQ(count(), 0);
  const std::string group =
      fmt::format("{}{:08x}", function::kCgroupPrefix, base::Crc32c(state_.path()));
  auto groups = [&] {
    std::vector<std::string> found;
    std::error_code gone;  // other groups come and go
    for (std::filesystem::recursive_directory_iterator at("/sys/fs/cgroup", gone), end; at != end;
         at.increment(gone)) {
      if (at->path().filename() == group) found.push_back(at->path());
    }
    return found;
  };
  for (int i = 0; i < 500 && !groups().empty(); ++i) ::usleep(10'000);
  EXPECT_THAT(groups(), testing::IsEmpty());
}

}  // namespace
}  // namespace reprise::sandboxd
