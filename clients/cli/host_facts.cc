#include "clients/cli/host_facts.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>

#include "base/fd.h"
#include "clients/cli/output.h"
#include "clients/cli/sockets.h"

namespace reprise::cli {
namespace {

constexpr uint64_t kProcFileBytesMax = 4 << 20;
constexpr uint64_t kDiskBytesLow = 1ull << 30;  // a journal grows fast
constexpr unsigned kLandlockVersion = 1;        // LANDLOCK_CREATE_RULESET_VERSION

Fact Kernel() {
  utsname name{};
  ::uname(&name);
  return {"kernel", true, fmt::format("{} {} {}", name.sysname, name.release, name.machine)};
}

Fact Cpu() {
  std::string model = "unknown";
  if (auto text = base::ReadFile("/proc/cpuinfo", kProcFileBytesMax); text.ok()) {
    size_t line = text->find("model name");
    size_t colon = line == text->npos ? line : text->find(": ", line);
    if (colon != text->npos) model = text->substr(colon + 2, text->find('\n', colon) - colon - 2);
  }
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return {"CPU", avx2,
          fmt::format("{}, {} cores, {}", model, std::thread::hardware_concurrency(),
                      avx2 ? "AVX2" : "no AVX2: the engine runs slowly")};
}

Fact Memory() {
  struct sysinfo info {};
  if (::sysinfo(&info) != 0) return {"memory", false, std::strerror(errno)};
  uint64_t unit = info.mem_unit;
  return {"memory", true,
          fmt::format("{}, {} free", HumanBytes(info.totalram * unit),
                      HumanBytes((info.freeram + info.bufferram) * unit))};
}

Fact Disk(const std::string& state_dir) {
  std::error_code error;
  std::filesystem::path path = std::filesystem::absolute(state_dir, error).lexically_normal();
  while (!std::filesystem::exists(path, error) && path.has_relative_path())
    path = path.parent_path();
  struct statvfs info {};
  if (::statvfs(path.c_str(), &info) != 0)
    return {"disk", false, fmt::format("{}: {}", path.string(), std::strerror(errno))};
  uint64_t free = info.f_bavail * info.f_frsize;
  bool writable = ::access(path.c_str(), W_OK) == 0;
  std::string value = fmt::format("{} free at {}", HumanBytes(free), path.string());
  if (!writable) value += ", not writable by this user";
  if (free < kDiskBytesLow) value += ", little for a journal";
  return {"disk", writable && free >= kDiskBytesLow, value};
}

// Made in a child, and given up with it.
Fact Namespaces() {
  struct Kind {
    int flag;
    const char* name;
  };
  constexpr Kind kKinds[] = {{CLONE_NEWUSER, "user"}, {CLONE_NEWPID, "pid"}, {CLONE_NEWNS, "mount"},
                             {CLONE_NEWNET, "net"},   {CLONE_NEWIPC, "ipc"}, {CLONE_NEWUTS, "uts"}};
  std::string have, missing;
  for (const Kind& kind : kKinds) {
    pid_t child = ::fork();
    if (child == 0) ::_exit(::unshare(kind.flag | CLONE_NEWUSER) == 0 ? 0 : errno);
    int status = 0;
    bool made = child > 0 && ::waitpid(child, &status, 0) == child && WIFEXITED(status) &&
                WEXITSTATUS(status) == 0;
    std::string& list = made ? have : missing;
    list += (list.empty() ? "" : ", ") + std::string(kind.name);
  }
  if (missing.empty()) return {"namespaces", true, have};
  return {"namespaces", false,
          fmt::format("missing {}: may this user make them (kernel.unprivileged_userns_clone)?",
                      missing)};
}

Fact Cgroups() {
  std::error_code ignored;
  bool unified = std::filesystem::exists("/sys/fs/cgroup/cgroup.controllers", ignored);
  bool v1 = std::filesystem::exists("/sys/fs/cgroup/memory", ignored);
  bool hybrid = std::filesystem::exists("/sys/fs/cgroup/unified", ignored);
  if (unified) return {"control groups", true, "v2"};
  if (v1) return {"control groups", true, hybrid ? "v1, with v2 beside it (hybrid)" : "v1"};
  return {"control groups", false, "none at /sys/fs/cgroup: limits are kept less exactly"};
}

Fact Landlock() {
  long abi = ::syscall(SYS_landlock_create_ruleset, nullptr, 0, kLandlockVersion);
  if (abi > 0) return {"Landlock", true, fmt::format("ABI {}", abi)};
  return {"Landlock", false, fmt::format("no: {}", std::strerror(errno))};
}

Fact Seccomp() {
  uint32_t action = SECCOMP_RET_KILL_PROCESS;
  long answer = ::syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action);
  if (answer == 0) return {"seccomp", true, "filters"};
  return {"seccomp", false, fmt::format("no filters: {}", std::strerror(errno))};
}

Fact Containerd(const std::string& socket) {
  std::error_code ignored;
  if (Answers("unix:" + socket)) return {"containerd", true, fmt::format("answers at {}", socket)};
  bool there = std::filesystem::exists(socket, ignored);
  return {"containerd", false,
          fmt::format("{} {}: start containerd for the container tier", socket,
                      there ? "does not answer" : "is not there")};
}

// Breakouts that are told by the version. Debian's 1.1.5 carries the fixes of 2024, not the later
// ones.
Fact Runc() {
  std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen("runc --version 2>/dev/null", "re"), ::pclose);
  int major = 0, minor = 0, patch = 0;
  char rest[32] = "";
  if (pipe == nullptr ||
      std::fscanf(pipe.get(), "runc version %d.%d.%d%31[^\n]", &major, &minor, &patch, rest) < 3) {
    return {"runc", false, "not found: install it for the container tier"};
  }
  const std::string name = fmt::format("{}.{}.{}{}", major, minor, patch, rest);
  if (std::string_view(rest).starts_with("-rc")) --patch;  // before the release: without its fixes
  const auto version = std::make_tuple(major, minor, patch);
  const bool redirects_fixed = version >= std::make_tuple(1, 4, 0) ||
                               (major == 1 && minor == 3 && patch >= 3) ||
                               (major == 1 && minor == 2 && patch >= 8);
  const bool links_fixed = version >= std::make_tuple(1, 5, 0);
  std::string open;
  if (!redirects_fixed)
    open = "CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881 (fixed in 1.2.8, 1.3.3, 1.4.0)";
  if (!links_fixed) {
    open += open.empty() ? "" : ", ";
    open += "CVE-2026-41579 (fixed in 1.5.0)";
  }
  if (open.empty()) return {"runc", true, name};
  return {
      "runc", redirects_fixed,
      fmt::format("{}: open are {}; containers have user namespaces and images with a link at /dev "
                  "are refused, but install a newer one where programs are hostile",
                  name, open)};
}

}  // namespace

std::vector<Fact> HostFacts(const std::string& state_dir, const std::string& containerd_socket) {
  return {Kernel(),        Cpu(),        Memory(),
          Disk(state_dir), Namespaces(), Cgroups(),
          Landlock(),      Seccomp(),    Containerd(containerd_socket),
          Runc()};
}

Fact CudaFact() {
#ifdef REPRISE_CUDA_BUILT
  constexpr bool kBuilt = true;
#else
  constexpr bool kBuilt = false;
#endif
  std::string build = kBuilt ? "kernels built in" : "no kernels in this build";
  // The driver is asked through its own library, so that one binary runs with and without it.
  void* driver = ::dlopen("libcuda.so.1", RTLD_NOW);
  if (driver == nullptr) return {"CUDA", false, build + "; no driver (libcuda.so.1)"};
  auto init = reinterpret_cast<int (*)(unsigned)>(::dlsym(driver, "cuInit"));
  auto count = reinterpret_cast<int (*)(int*)>(::dlsym(driver, "cuDeviceGetCount"));
  auto name = reinterpret_cast<int (*)(char*, int, int)>(::dlsym(driver, "cuDeviceGetName"));
  int devices = 0;
  bool asked = init != nullptr && count != nullptr && name != nullptr && init(0) == 0 &&
               count(&devices) == 0;
  if (!asked || devices == 0) return {"CUDA", false, build + "; a driver, but no device"};
  char text[256] = "";
  name(text, sizeof(text), 0);
  return {"CUDA", kBuilt, fmt::format("{}; {} device(s), the first a {}", build, devices, text)};
}

}  // namespace reprise::cli
