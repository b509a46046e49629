// Calls in containers: the cases of every tier, then what only containers have, against a real
// containerd.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/integration/container_support.h"
#include "tests/integration/tier_cases.h"

namespace reprise::sandboxd {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

INSTANTIATE_TYPED_TEST_SUITE_P(Container, TierCases, ContainerTest);

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

TEST_F(ContainerTest, ProgramsCannotTypeIntoTheirTerminal) {
  const TestSandbox box = Create();
  sandbox::ExecuteRequest request = Shell(box, "./typist");
  sandbox::InputFile* file = request.add_files();
  file->set_path("typist");
  file->set_content(base::ReadFile(std::string(REPRISE_BIN_DIR) + "/../tests/typist").value_or(""));
  file->set_mode(0755);
  request.mutable_pty();
  EXPECT_EQ(Run(box, request).out, "typed 0\r\n");
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

}  // namespace
}  // namespace reprise::sandboxd
