#include "sandboxd/container/oci_spec.h"

#include <errno.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "sandboxd/container/idmap.h"
#include "sandboxd/container/seccomp_profile.h"

namespace reprise::sandboxd {
namespace {

using nlohmann::json;

constexpr uint64_t kNamespaceFlags = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC |
                                     CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET |
                                     0x80 /* CLONE_NEWTIME */;
// What the agent needs before it drops them for every process that it starts: to become other
// users, to signal them, to keep order in the file system, and to hide its socket's mount.
const std::vector<std::string> kAgentCapabilities = {
    "CAP_CHOWN",  "CAP_DAC_OVERRIDE", "CAP_FOWNER",  "CAP_KILL",
    "CAP_SETGID", "CAP_SETUID",       "CAP_SETPCAP", "CAP_SYS_ADMIN"};

json Mount(const std::string& target, const std::string& type, const std::string& source,
           std::vector<std::string> options) {
  return {
      {"destination", target}, {"type", type}, {"source", source}, {"options", std::move(options)}};
}

json Mounts(const ContainerSpecInput& input) {
  const std::string shm_size =
      fmt::format("size={}", std::max<uint64_t>(input.limits.memory_bytes() / 2, 1 << 20));
  json mounts = {
      Mount("/proc", "proc", "proc", {"nosuid", "noexec", "nodev"}),
      Mount("/dev", "tmpfs", "tmpfs", {"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}),
      Mount("/dev/pts", "devpts", "devpts",
            {"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}),
      Mount("/dev/shm", "tmpfs", "shm", {"nosuid", "noexec", "nodev", "mode=1777", shm_size}),
      Mount("/dev/mqueue", "mqueue", "mqueue", {"nosuid", "noexec", "nodev"}),
      Mount("/sys", "sysfs", "sysfs", {"nosuid", "noexec", "nodev", "ro"}),
      Mount(kAgentInside, "bind", input.agent_path, {"bind", "ro", "nosuid", "nodev"}),
      Mount(kRunDirInside, "bind", input.run_dir, {"bind", "rw", "nosuid", "nodev", "noexec"}),
  };
  for (const auto& bind : input.binds) {
    mounts.push_back(
        Mount(bind.sandbox_path(), "bind", bind.host_path(),
              {"rbind", "rprivate", "nosuid", "nodev", bind.writable() ? "rw" : "ro"}));
  }
  return mounts;
}

json Allow(std::vector<std::string> names, json args = json::array()) {
  return {{"names", std::move(names)}, {"action", "SCMP_ACT_ALLOW"}, {"args", std::move(args)}};
}

json Arg(int index, uint64_t value, const char* op, uint64_t value_two = 0) {
  return {{"index", index}, {"value", value}, {"valueTwo", value_two}, {"op", op}};
}

// Every ioctl but `refused`. The kernel looks at the low 32 bits of the request only, and a filter
// cannot ask for "masked and different": one rule for each bit that may differ.
void AllowOtherIoctls(uint32_t refused, json* rules) {
  for (int bit = 0; bit < 32; ++bit) {
    const uint64_t mask = uint64_t{1} << bit;
    rules->push_back(Allow({"ioctl"}, {Arg(1, mask, "SCMP_CMP_MASKED_EQ", ~refused & mask)}));
  }
}

json Seccomp() {
  const auto& allowed = ContainerAllowedSyscalls();
  json rules = json::array();
  rules.push_back(Allow({allowed.begin(), allowed.end()}));
  for (const int family : {AF_UNIX, AF_INET, AF_INET6}) {
    rules.push_back(Allow({"socket"}, {Arg(0, static_cast<uint64_t>(family), "SCMP_CMP_EQ")}));
  }
  rules.push_back(Allow({"clone"}, {Arg(0, kNamespaceFlags, "SCMP_CMP_MASKED_EQ", 0)}));
  rules.push_back(Allow({"umount2"}, {Arg(1, MNT_DETACH, "SCMP_CMP_EQ")}));
  for (const uint64_t persona : {0ull, 0x0008ull, 0x20000ull, 0x20008ull, 0xffffffffull}) {
    rules.push_back(Allow({"personality"}, {Arg(0, persona, "SCMP_CMP_EQ")}));
  }
  AllowOtherIoctls(TIOCSTI, &rules);  // which types into a terminal
  rules.push_back({{"names", {"clone3"}}, {"action", "SCMP_ACT_ERRNO"}, {"errnoRet", ENOSYS}});
#if defined(__x86_64__)
  const char* const architecture = "SCMP_ARCH_X86_64";
#elif defined(__aarch64__)
  const char* const architecture = "SCMP_ARCH_AARCH64";
#endif
  return {{"defaultAction", "SCMP_ACT_ERRNO"},
          {"defaultErrnoRet", EPERM},
          {"architectures", {architecture}},
          {"syscalls", rules}};
}

// Against other containers.
constexpr int kCpuShares = 1024, kCpuSharesLeast = 2;

json Resources(const sandbox::Limits& limits) {
  // Swap counts: the sum of both is the limit.
  const auto memory = static_cast<int64_t>(limits.memory_bytes());
  json resources = {{"devices", {{{"allow", false}, {"access", "rwm"}}}},
                    {"memory", {{"limit", memory}, {"swap", memory}}},
                    {"pids", {{"limit", limits.pids()}}},
                    {"cpu", {{"shares", limits.best_effort() ? kCpuSharesLeast : kCpuShares}}}};
  return resources;
}

}  // namespace

std::string MakeRuntimeSpec(const ContainerSpecInput& input) {
  std::vector<std::string> args = {kAgentInside};
  args.insert(args.end(), input.agent_args.begin(), input.agent_args.end());
  json namespaces = {{{"type", "pid"}},
                     {{"type", "ipc"}},
                     {{"type", "uts"}},
                     {{"type", "mount"}},
                     {{"type", "network"}}};
  json linux_part = {
      {"namespaces", namespaces},
      {"cgroupsPath", input.cgroup_path},
      {"resources", Resources(input.limits)},
      {"rootfsPropagation", "private"},
      {"seccomp", Seccomp()},
      {"maskedPaths",
       {"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
        "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
        "/sys/devices/virtual/powercap"}},
      {"readonlyPaths",
       {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}}};
  if (input.base_id != 0) {
    const json map = {{{"containerID", 0}, {"hostID", input.base_id}, {"size", kIdsPerSandbox}}};
    linux_part["namespaces"].push_back({{"type", "user"}});
    linux_part["uidMappings"] = map;
    linux_part["gidMappings"] = map;
  }
  const json capabilities = {{"bounding", kAgentCapabilities},
                             {"effective", kAgentCapabilities},
                             {"permitted", kAgentCapabilities},
                             {"inheritable", json::array()},
                             {"ambient", json::array()}};
  return json({{"ociVersion", "1.0.2"},
               {"root", {{"path", "rootfs"}, {"readonly", false}}},
               {"hostname", input.hostname},
               {"process",
                {{"terminal", false},
                 {"user", {{"uid", 0}, {"gid", 0}}},
                 {"args", args},
                 {"env", input.env},
                 {"cwd", "/"},
                 {"capabilities", capabilities},
                 {"noNewPrivileges", true}}},
               {"mounts", Mounts(input)},
               {"linux", linux_part}})
      .dump();
}

}  // namespace reprise::sandboxd
