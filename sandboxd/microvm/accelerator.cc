#include "sandboxd/microvm/accelerator.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <x86intrin.h>

#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace reprise::sandboxd::microvm {
namespace {

using nlohmann::json;

constexpr char kKvm[] = "/dev/kvm";
constexpr char kBootIdPath[] = "/proc/sys/kernel/random/boot_id";
constexpr size_t kFileBytesMax = 64 << 10;
// KVM boots in under a second where it works, and never where it does not; emulation takes as long
// as the host is busy.
constexpr int64_t kKvmDeadlineMs = 6'000;
constexpr int64_t kTcgDeadlineMs = 180'000;
constexpr int64_t kTscMeasureUs = 20'000;

// An emulated guest reads the host's counter and has nothing to measure it with.
uint64_t MeasureTscKhz() {
  const int64_t start_us = base::MonotonicMicros();
  const uint64_t start = __rdtsc();
  int64_t now_us = start_us;
  while (now_us - start_us < kTscMeasureUs) now_us = base::MonotonicMicros();
  return (__rdtsc() - start) * 1000 / static_cast<uint64_t>(now_us - start_us);
}

}  // namespace

absl::StatusOr<Accelerator> AcceleratorProbe::Get() {
  if (std::optional<Accelerator> known = Known()) return *std::move(known);
  absl::MutexLock probing(&probe_mutex_);
  if (std::optional<Accelerator> known = Known()) return *std::move(known);
  ASSIGN_OR_RETURN(Accelerator found, Probe());
  base::LogInfo(fmt::format("virtual machines: accelerator {} ({})", found.name, found.reason));
  const json record = {{"host", HostKey()}, {"name", found.name}, {"reason", found.reason}};
  // Only the next daemon's time is lost when it cannot be remembered.
  if (absl::Status written = base::WriteFileAtomic(path_, record.dump()); !written.ok())
    base::LogWarn(std::string(written.message()));
  absl::MutexLock lock(&mutex_);
  known_ = found;
  return found;
}

std::optional<Accelerator> AcceleratorProbe::Known() {
  absl::MutexLock lock(&mutex_);
  if (!recalled_) Recall();
  return known_;
}

void AcceleratorProbe::Recall() {
  recalled_ = true;
  const json record =
      json::parse(base::ReadFile(path_, kFileBytesMax).value_or(""), nullptr, false);
  if (!record.is_object() || record.value("host", json()) != json(HostKey())) return;
  const json name = record.value("name", json()), reason = record.value("reason", json());
  if ((name != "kvm" && name != "tcg") || !reason.is_string()) return;
  known_ = Accelerator{name.get<std::string>(), reason.get<std::string>(), MeasureTscKhz()};
}

std::string VmmKey(const std::string& program) {
  struct stat found {};
  stat(program.c_str(), &found);
  return fmt::format("{} {} {}", program, found.st_size, found.st_mtime);
}

std::string AcceleratorProbe::HostKey() const {
  std::string boot = base::ReadFile(kBootIdPath, kFileBytesMax).value_or("");
  while (!boot.empty() && boot.back() == '\n') boot.pop_back();
  return fmt::format("{} {}", boot, VmmKey(vmm_));
}

absl::StatusOr<Accelerator> AcceleratorProbe::Probe() const {
  const uint64_t tsc_khz = MeasureTscKhz();
  std::string no_kvm;
  if (!base::UniqueFd(open(kKvm, O_RDWR | O_CLOEXEC)).valid()) {
    no_kvm = std::string(base::ErrnoStatus(errno, kKvm).message());
  } else {
    const absl::Status kvm = boot_({"kvm", "", tsc_khz}, kKvmDeadlineMs);
    if (kvm.ok()) return Accelerator{"kvm", "its probe guest ran", tsc_khz};
    no_kvm = fmt::format("its probe guest failed: {}", kvm.message());
  }
  const absl::Status tcg = boot_({"tcg", "", tsc_khz}, kTcgDeadlineMs);
  if (tcg.ok()) return Accelerator{"tcg", fmt::format("emulation; KVM: {}", no_kvm), tsc_khz};
  return absl::FailedPreconditionError(
      fmt::format("no guest runs here: KVM: {}; emulation: {}", no_kvm, tcg.message()));
}

}  // namespace reprise::sandboxd::microvm
